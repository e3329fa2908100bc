// What the page was told when it was made.

export const $ = (id) => document.getElementById(id);
export const page = JSON.parse(document.body.dataset.page);
export const ranks = page.kind === "ranking";
