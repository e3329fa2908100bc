"""What the commands do: each verb's work, and what several of them share. The commands themselves are `palate.cli`."""
