// The dashboard: new join links, revoking them, and fresh numbers.

import { post } from "./net.js";

const $ = (id) => document.getElementById(id);

function told(words) {
  $("told").textContent = words;
}

$("invite")?.addEventListener("click", async () => {
  try {
    const { link, name } = await post("/admin/raters", { name: $("name").value, role: $("role").value });
    $("link").hidden = false;
    $("link-for").textContent = `For ${name}. It is shown this once; whoever has it can vote in that name.`;
    $("link-text").value = location.origin + link;
    $("link-text").select();
    $("name").value = "";
  } catch (error) {
    told(error.message);
  }
});

$("copy")?.addEventListener("click", async () => {
  $("link-text").select();
  try {
    await navigator.clipboard.writeText($("link-text").value);
    told("Copied.");
  } catch {
    told("Press Ctrl+C to copy it.");
  }
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-revoke]");
  if (!button) return;
  if (!button.dataset.sure) {  // once is a slip
    button.dataset.sure = "yes";
    button.textContent = "Really revoke?";
    setTimeout(() => { delete button.dataset.sure; button.textContent = "Revoke"; }, 4000);
    return;
  }
  try {
    await post("/admin/revoke", { rater: button.dataset.revoke });
    location.reload();
  } catch (error) {
    told(error.message);
  }
});

$("refresh")?.addEventListener("click", () => location.reload());
