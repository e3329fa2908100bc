// Words that come up and go again, for eyes and for ears, and a button that shows it was pressed.

import { element } from "./net.js";

export function toast(words, grave = false) {
  const made = element("p", { className: grave ? "toast grave" : "toast", textContent: words });
  document.getElementById("toasts").replaceChildren(made);
  setTimeout(() => made.remove(), grave ? 9000 : 2600);
}

export function heard(words) {
  document.getElementById("heard").textContent = words;
}

export function struck(selector) {
  const button = document.querySelector(selector);
  if (!button) return;
  button.classList.add("struck");
  setTimeout(() => button.classList.remove("struck"), 140);
}
