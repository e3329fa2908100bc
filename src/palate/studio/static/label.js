// The labelling page: what an answer, an undo and a reply of the studio lead to.

import { later, post, Refused, Unreachable } from "./net.js";
import { Outbox } from "./outbox.js";
import { Tabs } from "./tabs.js";
import { Tasks } from "./tasks.js";
import { $, page } from "./page.js";
import { clear, drawQuestion, drawTools, locked, show, shown, skippable, unveil, zoom } from "./desk.js";
import { counted, drawRest, drawState, standing } from "./saved.js";
import { listen } from "./keys.js";
import { heard, struck, toast } from "./tell.js";

const outbox = new Outbox(page.space);
const tasks = new Tasks(outbox, new Tabs(page.space, outbox.tab));
outbox.wants = (lease) => tasks.wanted(lease);

let past = [];  // { key, task } of the latest answers
let session = 0, heardOf = 0;
let asking = null;
let undoing = null;  // the undo whose outcome is waited for: { key, task } that was taken back, and what was on the desk
let undoLater = null;  // the same, when the rater went on before its outcome was known

// --- what is at hand ---------------------------------------------------------------------------------------------------

function draw(pressed) {
  if (tasks.first) show(tasks.first, choose, pressed);
  else { clear(); drawRest(outbox); }
}

// The desk takes what came, if there was nothing on it.
function lookUp() {
  if (!shown && tasks.first) draw();
  else if (!shown) drawRest(outbox);
  drawState(outbox);
}

// Asks for tasks where an answer's reply did not bring them: at the start, by the clock, after an undo.
function fill() {
  tasks.prune();
  if (tasks.full) return lookUp();
  asking ??= (async () => {
    const before = heardOf, still = !outbox.entries().length;
    try {
      const reply = await post("/api/lease", { n: tasks.wanted() });
      counted(reply.progress, still && heardOf === before && !outbox.entries().length);
      tasks.take(reply.leases);
      standing.said = "";
    } catch (error) {
      standing.said = error instanceof Refused && error.status === 401 ? "signed out" : "unreachable";
      if (!(error instanceof Refused || error instanceof Unreachable)) throw error;
    } finally {
      asking = null;
    }
    lookUp();
  })();
  return asking;
}

// --- answering ---------------------------------------------------------------------------------------------------------

function choose(choice, event) {
  if (!shown || undoing) return;
  const shut = locked(), { task } = shown;
  if (shut) return toast(shut);
  struck(`[data-choice="${choice}"]`);
  answer(task, choice, event);
}

function answer(task, value, event) {
  task.answers[page.questions[task.step].dimension] = value;
  if (task.step + 1 < page.questions.length) {
    task.step++;
    drawQuestion();
    heard(page.questions[task.step].text);
  } else {
    finish(task, task.answers, "", event?.timeStamp ?? performance.now());
  }
}

function finish(task, answers, reason, pressed) {
  const seconds = task.since ? (performance.now() - task.since) / 1000 : null;
  const key = outbox.key();
  past = [...past, { key, task }].slice(-20);
  session++;
  tasks.next();
  draw(pressed);  // first what is seen, then what is sent
  outbox.add({ key, lease: task.id, answers, seconds, reason });
  heard(shown ? `Next: ${shown.task.prompt}` : $("rest-title").textContent);
  if (session % 50 === 0) toast(`${session} in a row. A good moment to rest your eyes.`);
}

function skip(reason) {
  if (!shown || undoing) return;
  const { task } = shown;
  finish(task, Object.fromEntries(page.questions.map(({ dimension }) => [dimension, "skip"])), reason);
  toast("Skipped. Undo takes it back.");
}

// Takes back the step before, the answer that was not sent yet, or by the studio the rater's last one. That goes the way
// of answers, behind those before it and before those behind it, under one key until its outcome is known.
function undo() {
  if (undoing || shown?.ranking?.back()) return;
  if (shown?.task.step) {
    shown.task.step--;
    drawQuestion();
    return;
  }
  const last = past.at(-1);
  if (last && outbox.withdraw(last.key)) {
    past.pop();
    back(last.task, last.task, true);
  } else if (outbox.undoes()) {
    toast("What you took back before is still on its way.");
  } else {
    past.pop();
    const mine = undoing = { ...last, desk: shown?.task };
    outbox.add({ key: outbox.key(), undo: true });
    setTimeout(() => undoing === mine && goOn(), 3000);
  }
}

function goOn() {
  if (!undoing) return;
  undoLater = undoing;
  undoing = null;
  toast("It was sent already: it is taken back when there is a connection. You can go on.");
}

function back(lease, known, first) {
  tasks.again(lease, known, first ? 0 : 1);
  if (first) draw();
  toast(first ? "Taken back. Judge it again." : "Taken back. It comes next.");
}

// --- what the studio says ----------------------------------------------------------------------------------------------

outbox.addEventListener("told", ({ detail }) => {
  if (detail.status === "waiting") return goOn();
  heardOf++;
  if (detail.undo) return undone(detail);
  if (detail.done !== undefined) counted({ done: detail.done, whole: detail.whole, note: detail.note }, false);
  if (detail.status === "late" || detail.status === "failed") past = past.filter(({ key }) => key !== detail.key);
  if (detail.status === "late") toast("That one had been given to somebody else meanwhile: this answer is not counted.", true);
  if (detail.status === "failed") {
    toast(`An answer could not be saved: ${detail.why}. It is kept here; reload the page to send it again.`, true);
    fill();
  }
  if (detail.leases) {
    tasks.take(detail.leases);
    standing.said = "";
    lookUp();
  }
});

function undone({ status, again, progress, why }) {
  const mine = undoing ?? undoLater;
  undoing = undoLater = null;
  if (status === "failed") return toast(`It cannot be taken back: ${why}`, true);
  counted(progress, true);
  if (status === "nothing") toast("There is nothing to take back.");
  else if (!again) toast(status === "late" ? "Taken back. Somebody else has it now." : "Taken back.");
  else back(again, mine?.task, !shown || shown.task === mine?.desk);
  fill();
}

let before = outbox.entries().length;
outbox.addEventListener("change", () => {
  const now = outbox.entries().length;
  if (!shown && before && !now) fill();  // the last reply brought nothing; another tab may have had it
  before = now;
  if (!shown) drawRest(outbox);
  drawState(outbox);
});

// --- keys and buttons --------------------------------------------------------------------------------------------------

const acts = {
  undo,
  skip: () => skippable() && $("skip").showModal(),
  help: () => $("help").showModal(),
  zoom: () => { zoom.set(!zoom.on); drawTools(); },
  play: () => shown?.play.toggle(),
  replay: () => shown?.play.replay(),
  reveal: unveil,
  back: () => shown?.ranking?.back() || undo(),
  level: () => shown?.ranking?.toggleLevel(),
  done: (event) => {
    if (!shown?.ranking || undoing) return;
    const shut = locked();
    if (shut) return toast(shut);
    if (!shown.ranking.full) return toast("Place all of them first; the last one finds its place by itself.");
    answer(shown.task, shown.ranking.groups(), event);
  },
};
listen(acts, choose, skip);
$("look-again").addEventListener("click", () => { outbox.hurry(); fill(); });
$("leave").addEventListener("click", async () => {
  await post("/api/leave", {}).catch(() => {});
  location.replace("/join");
});
for (const [id, name] of [["blur", "blur"], ["opted-out", "opted_out"]]) {
  $(id)?.addEventListener("change", async ({ target }) => {
    try {
      await post("/api/preference", { [name]: target.checked });
      await asking;  // what was asked before is told as before
      for (let i = 0; outbox.sending && i < 300; i++) await later(50);
      tasks.clear();
      clear();
      await fill();
    } catch {
      target.checked = !target.checked;
      toast("This could not be saved; try again when there is a connection.", true);
    }
  });
}
addEventListener("online", () => { drawState(outbox); fill(); });
addEventListener("offline", () => drawState(outbox));
addEventListener("beforeunload", (event) => { if (outbox.volatile.size) event.preventDefault(); });
setInterval(() => { if (!document.hidden || !shown) fill(); }, 20_000);
setInterval(() => { if (!shown && standing.progress?.note) fill(); }, 5000);  // somebody waits for what is to come

fill();
drawState(outbox);
