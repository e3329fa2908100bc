// The dashboard: new join links, revoking them, erasing raters, all that was said as a file, and fresh numbers.

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

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-erase]");
  if (!button) return;
  $("erase-title").textContent = `Erase ${button.dataset.name}?`;
  $("erase-votes").checked = false;
  $("erase-sure").dataset.rater = button.dataset.erase;
  $("erase").showModal();
});

$("erase-not")?.addEventListener("click", () => $("erase").close());

$("erase-sure")?.addEventListener("click", async () => {
  const asked = { rater: $("erase-sure").dataset.rater, votes: $("erase-votes").checked };
  $("erase").close();
  try {
    await post("/admin/erase", asked);
    location.reload();
  } catch (error) {
    told(error.message);
  }
});

$("export")?.addEventListener("click", async () => {
  const said = $("export-told");
  $("export").disabled = true;
  said.textContent = "It is being put together ...";
  try {
    const { link, snapshot, bytes } = await post("/admin/export", {}, { seconds: 3600 });
    said.textContent = `Snapshot ${snapshot}, ${(bytes / 2 ** 20).toFixed(1)} MiB.`;
    location.assign(link);  // an attachment: the page stays
  } catch (error) {
    said.textContent = error.message;
  } finally {
    $("export").disabled = false;
  }
});

$("refresh")?.addEventListener("click", () => location.reload());
