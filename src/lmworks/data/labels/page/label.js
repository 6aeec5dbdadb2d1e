// The labelling page: one comparison at a time, stored by the server before the next one is shown.

const $ = (id) => document.getElementById(id);
const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", 0: "tie" };

let study = null;
let annotator = sessionStorage.getItem("annotator");
let shown = null;
let busy = false;

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch(path, options);
  const told = await reply.json().catch(() => ({ error: `The server answered ${reply.status}.` }));
  if (!reply.ok) throw Object.assign(new Error(told.error), { status: reply.status });
  return told;
}

// One thing at a time: a key held down must not label twice.
async function alone(work) {
  if (busy) return;
  busy = true;
  $("status").textContent = "";
  try {
    await work();
  } catch (error) {
    if (error.status === 403) signOut();
    else $("status").textContent = `Not stored: ${error.message}`;
  } finally {
    busy = false;
  }
}

function only(part) {
  for (const id of ["welcome", "task", "done"]) $(id).hidden = id !== part;
  const known = part !== "welcome";
  for (const id of ["leave", "withdraw"]) $(id).hidden = !known;
  $("who").textContent = known ? annotator : "";
  if (!known) $("progress").textContent = "";
}

function write(place, turns) {
  place.replaceChildren(
    ...turns.flatMap(({ role, text }) => {
      const said = document.createElement("span");
      said.textContent = text;
      if (!role || (turns.length === 1 && role !== "system")) return [said];
      const speaker = document.createElement("span");
      speaker.className = "speaker";
      speaker.textContent = role;
      return [speaker, said];
    }),
  );
}

async function show(at) {
  shown = await ask("/api/items", at === undefined ? { annotator } : { annotator, at });
  $("progress").textContent = `${shown.labeled} of ${shown.items}`;
  $("bar").value = shown.labeled / shown.items;
  if (shown.item === null) return only("done");
  write($("prompt"), shown.prompt);
  write($("left"), shown.left);
  write($("right"), shown.right);
  for (const side of ["left", "right", "tie"]) $(side).classList.toggle("chosen", shown.choice === side);
  $("note").value = shown.note;
  $("back").disabled = shown.at === 0;
  only("task");
  document.activeElement?.blur();
  scrollTo(0, 0);
}

const choose = (choice) =>
  alone(async () => {
    await ask("/api/labels", { annotator, item: shown.item, choice, note: $("note").value });
    await show();
  });

const back = () =>
  alone(async () => {
    const at = shown.item === null ? shown.items - 1 : shown.at - 1;
    if (at >= 0) await show(at);
  });

function signOut() {
  annotator = null;
  sessionStorage.removeItem("annotator");
  $("agree").checked = false;
  only("welcome");
  $("name").focus();
}

$("welcome").addEventListener("submit", (event) => {
  event.preventDefault();
  alone(async () => {
    const name = $("name").value.trim();
    await ask("/api/consent", { annotator: name, version: study.version });
    annotator = name;
    sessionStorage.setItem("annotator", name);
    await show();
  });
});
for (const side of ["left", "right", "tie"]) $(side).addEventListener("click", () => choose(side));
$("back").addEventListener("click", back);
$("again").addEventListener("click", back);
$("leave").addEventListener("click", signOut);
$("withdraw").addEventListener("click", () => {
  if (confirm("Withdraw your consent? None of your labels will be used.")) {
    alone(async () => {
      await ask("/api/withdraw", { annotator });
      signOut();
      $("status").textContent = "Your consent is withdrawn; none of your labels is used.";
    });
  }
});

document.addEventListener("keydown", (event) => {
  if ($("task").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("note")) {
    if (event.key === "Escape" || event.key === "Enter") $("note").blur();
    return;
  }
  if (event.key in KEYS) choose(KEYS[event.key]);
  else if (event.key === "Backspace") back();
  else if (event.key === "n") $("note").focus();
  else return;
  event.preventDefault();
});

alone(async () => {
  study = await ask("/api/study");
  $("consent").textContent = study.consent;
  if (annotator) await show();
  else signOut();
});
