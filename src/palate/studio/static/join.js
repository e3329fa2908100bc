// The join page: the token stands in the address behind #, which browsers do not send. It is posted once and forgotten.

import { post, Refused } from "./net.js";

const says = document.getElementById("says"), more = document.getElementById("more"), again = document.getElementById("again");
let token = "";

function enter() {
  if (location.hash.length < 2) return;
  token = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  join();
}

async function join() {
  again.hidden = true;
  says.textContent = "One moment";
  more.textContent = "You are being let in.";
  try {
    location.replace((await post("/api/join", { token })).to);
  } catch (error) {
    const why = error instanceof Refused ? error.status : 0;
    says.textContent = "That did not work";
    more.textContent = why === 401 ? "This link is not valid, or not any more. Ask for a new one."
      : why === 429 ? "There were too many attempts from here. Wait a minute and try again."
      : why ? error.message : "The studio cannot be reached. Is it running?";
    again.hidden = why === 401;
    says.focus();
  }
}

again.addEventListener("click", join);
addEventListener("hashchange", enter);  // a link that is opened where this page is open already loads nothing
enter();
