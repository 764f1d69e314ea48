// The page: one post in, what the server says about it out. All text goes in by textContent.
import { drawAttention, describeAttention } from "./attention.js";

const $ = (id) => document.getElementById(id);
const form = $("form"), textBox = $("text"), fileBox = $("image"), submit = $("submit"), thumb = $("thumb");
let picture = null;      // File to send
let shown = null;        // {answer, bitmap} on the page
let running = null;      // AbortController of the request under way

// Picture: chosen, dropped or pasted ------------------------------------------------------------

function setPicture(file) {
  picture = file;
  // The box names the file, also one that was dropped or pasted.
  const files = new DataTransfer();
  if (file) files.items.add(file);
  fileBox.files = files.files;
  $("picture-name").hidden = !file;
  $("picture-name").querySelector("span").textContent = file ? kilobytes(file.size) : "";
  URL.revokeObjectURL(thumb.src);
  thumb.hidden = !file;
  if (file) thumb.src = URL.createObjectURL(file); else thumb.removeAttribute("src");
}
const kilobytes = (bytes) => `${Math.max(1, Math.round(bytes / 1000))} kB`;

thumb.addEventListener("error", () => { thumb.hidden = true; });  // no picture: the server will say so
fileBox.addEventListener("change", () => setPicture(fileBox.files[0] ?? null));
$("remove").addEventListener("click", () => { setPicture(null); fileBox.focus(); });
const drop = $("drop");
for (const type of ["dragenter", "dragover"]) {
  drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const type of ["dragleave", "drop"]) drop.addEventListener(type, () => drop.classList.remove("over"));
// Dropped beside the box, a picture would otherwise replace the page.
for (const type of ["dragover", "drop"]) window.addEventListener(type, (event) => event.preventDefault());
drop.addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length) setPicture(event.dataTransfer.files[0]);
});
window.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
  if (file) { event.preventDefault(); setPicture(file); }
});

// Asking ----------------------------------------------------------------------------------------

textBox.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
});
form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });

async function ask() {
  showError("");
  if (!textBox.value.trim()) {
    showError("Write or paste a text first.");
    textBox.focus();
    return;
  }
  running?.abort();
  const mine = running = new AbortController();
  submit.setAttribute("aria-disabled", "true");
  $("status").textContent = "Working…";
  const text = textBox.value, file = picture;
  const body = new FormData();
  // Forms turn line breaks into CR LF, which would shift every offset; JSON keeps the text as it is.
  body.append("posts", JSON.stringify([file ? { text, image: "picture" } : { text }]));
  if (file) body.append("picture", file, "picture");
  const begun = performance.now();
  try {
    const headers = $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
    const response = await fetch("v1/explain", { method: "POST", body, headers, signal: mine.signal });
    const answer = await response.json().catch(() => null);
    if (!response.ok) throw new Error(message(response.status, answer));
    await show(text, file, answer, performance.now() - begun);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("result").hidden = true;
    showError(error instanceof TypeError ? "The server cannot be reached, or the picture can no longer be read." : error.message);
    $("status").textContent = "";
  } finally {
    if (running === mine) submit.removeAttribute("aria-disabled");
  }
}

function message(status, answer) {
  if (status === 401) { $("key-box").open = true; return "This server needs an API key: enter it above."; }
  const said = answer?.error?.message ?? `The server answered ${status}.`;
  const detail = said[0].toUpperCase() + said.slice(1);
  return answer?.error?.request_id ? `${detail} (request ${answer.error.request_id.slice(0, 8)})` : detail;
}

function showError(text) {
  $("error").hidden = !text;
  $("error").textContent = text;
}

// Showing ---------------------------------------------------------------------------------------

async function show(text, file, answer, totalMs) {
  const { result } = answer;
  shown = { answer, bitmap: result.image_used ? await createImageBitmap(file).catch(() => null) : null };
  fillText(text, result.entities);
  fillTable(answer);
  fillTimes(answer.milliseconds, totalMs, answer);
  $("warnings").replaceChildren(...result.warnings.map((w) => element("li", `Picture not used: ${w.message}`)));
  $("warnings").hidden = !result.warnings.length;
  $("figure").hidden = $("choose").hidden = !shown.bitmap;
  $("choose").hidden ||= !result.entities.length;
  const count = result.entities.length;
  $("status").textContent = `${count || "No"} ${count === 1 ? "entity" : "entities"} found in ${Math.round(totalMs)} milliseconds.`;
  $("result").hidden = false;
  $("result-title").focus();
  select(answer.attention.findIndex(Boolean));
}

function element(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

function entityButton(entity, index) {
  const button = element("button", entity.text, `entity ${/^\w+$/.test(entity.label) ? entity.label : ""}`);
  button.type = "button";
  button.dataset.index = index;
  button.setAttribute("aria-pressed", "false");
  button.append(element("small", `${entity.label} ${percent(entity.score)}`));
  button.addEventListener("click", () => select(index));
  return button;
}
const percent = (score) => `${Math.round(100 * score)}\u00a0%`;

function fillText(text, entities) {
  // Offsets count code points, JavaScript's strings count UTF-16 units.
  const points = Array.from(text);
  const parts = [];
  let at = 0;
  entities.forEach((entity, index) => {
    parts.push(points.slice(at, entity.start).join(""), entityButton(entity, index));
    at = entity.end;
  });
  $("marked").replaceChildren(...parts, points.slice(at).join(""));
}

function fillTable({ result, without_image: without }) {
  const compare = result.image_used;
  $("without-head").hidden = !compare;
  const rows = result.entities.map((entity) => {
    const row = element("tr");
    row.append(element("td", entity.text), element("td", entity.label));
    const sure = element("td", `${percent(entity.score)} `);
    const meter = element("meter");
    meter.value = entity.score;
    meter.setAttribute("aria-hidden", "true");
    sure.append(meter);
    row.append(sure);
    if (compare) row.append(element("td", change(entity, without.entities)));
    return row;
  });
  $("table").tBodies[0].replaceChildren(...rows);
  $("table").hidden = !rows.length;
  $("changes").replaceChildren(...(compare ? changes(result.entities, without.entities)
    : rows.length ? [] : [element("p", "No entity found.")]));
}

const same = (a, b) => a.start === b.start && a.end === b.end;
function change(entity, others) {
  const other = others.find((o) => same(o, entity));
  if (!other) return "not found";
  if (other.label !== entity.label) return `${other.label}, ${percent(other.score)}`;
  const points = Math.round(100 * other.score) - Math.round(100 * entity.score);
  return points ? `${percent(other.score)} (${points > 0 ? "+" : "−"}${Math.abs(points)})` : "the same";
}
function changes(entities, others) {
  const only = others.filter((o) => !entities.some((e) => same(o, e)));
  const lost = entities.filter((e) => !others.some((o) => same(o, e)));
  const turned = entities.flatMap((e) => others.filter((o) => same(o, e) && o.label !== e.label).map((o) => [e, o]));
  const names = (list) => list.map((e) => `“${e.text}” (${e.label})`).join(", ");
  const list = element("ul");
  if (lost.length) list.append(element("li", `Only with the picture: ${names(lost)}`));
  if (only.length) list.append(element("li", `Only without it: ${names(only)}`));
  for (const [e, o] of turned) list.append(element("li", `“${e.text}”: ${e.label} with the picture, ${o.label} without it`));
  if (!list.childElementCount) return [element("p", "Without the picture the entities are the same.")];
  return [element("p", "The picture changes the answer:"), list];
}

function select(index) {
  for (const button of document.querySelectorAll("#marked .entity")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
  }
  if (!shown?.bitmap) return;
  const { answer, bitmap } = shown;
  const map = answer.attention[index] ?? null;
  drawAttention($("canvas"), bitmap, map, answer.crop);
  const entity = answer.result.entities[index];
  const where = !entity ? "" : map ? `For “${entity.text}” the model looked ${describeAttention(map)}.`
    : `“${entity.text}” is longer than the model's units, so there is no map for it.`;
  $("caption").textContent = where;
  $("canvas").setAttribute("aria-label", where || "The picture");
}

function fillTimes(ms, totalMs, answer) {
  const server = ms.read + ms.wait + ms.picture + ms.tag + ms.attention;
  const parts = [
    ["Network and page", Math.max(0, totalMs - server), "t1"],
    ["Reading the request", ms.read, "t2"],
    ["Waiting", ms.wait, "t3"],
    [answer.picture_cached ? "Picture (from the cache)" : "Picture", ms.picture, "t4"],
    ["Text, fusion, decoding", ms.tag, "t5"],
    ["Attention, only for this page", ms.attention, "t6"],
  ].filter(([, value]) => value >= 0.05);
  $("bar").replaceChildren(...parts.map(([, value, name]) => {
    const piece = element("i", undefined, name);
    piece.style.flexGrow = value;
    return piece;
  }));
  $("times").replaceChildren(...[...parts, ["Total", totalMs, ""]].map(([label, value, name]) => {
    const row = element("div");
    row.append(element("dt", label, name || undefined), element("dd", `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`));
    return row;
  }));
  $("tier").textContent = `Served by ${answer.result.provider}, ${answer.result.precision}${
    answer.result.certified ? ", certified equal to float32" : ""
  }.`;
}
