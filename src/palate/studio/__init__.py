"""The studio: the labelling web app of a project folder. `app.create` makes it, `serve.serve` runs it.

Everything is closed unless it is on a short list (`guard.OPEN`); raters see what to judge and nothing about where it
came from. No build step: templates, plain JavaScript modules and one style sheet.
"""
