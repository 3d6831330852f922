"use strict";
// One picture at a time: its bytes go to /predict, and what comes back is drawn over it. All else happens here.
const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const pen = canvas.getContext("2d");
const FRAME_SIDE = 1280; // px, the longer side of what a camera sends
const SIDES = [1200, 2400]; // px, between which the longer side of the canvas lies, whatever the picture
let server = { classes: [], category_ids: [] };
let picture = null; // { name, bitmap or null, width, height, detections }
let highlighted = null;
let stream = null; // of the camera
let number = 0; // of the request that counts: an answer to an earlier one is dropped

// ---- words

function problem(text) {
  element("problem").hidden = !text;
  element("problem").textContent = text || "";
}

function note(text) {
  element("note").hidden = !text;
  element("note").textContent = text || "";
}

async function about() {
  try {
    const answer = await fetch("health");
    server = await answer.json();
    element("source").textContent = server.source;
    const count = server.classes.length;
    element("about").textContent =
      `${count} ${count === 1 ? "class" : "classes"} on ${server.device}; detections from a score of ${server.score_threshold} on`;
    element("score").min = server.score_threshold;
    if (!answer.ok) problem(`The server cannot answer: ${server.state}.`);
    show();
  } catch {
    problem("The server does not answer. Is it still running?");
  }
}

// ---- detection

async function ask(blob) {
  let answer;
  try {
    answer = await fetch("predict", { method: "POST", body: blob, headers: { "Content-Type": blob.type || "application/octet-stream" } });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const content = await answer.json().catch(() => null);
  if (!content) throw new Error(`The server answered with status ${answer.status} and nothing to read.`);
  if (!answer.ok) throw new Error(plain(answer.status, content.error));
  return content;
}

function plain(status, message) {
  const start = {
    413: "This picture is too large.",
    422: "This picture cannot be read.",
    503: "The server is busy or stopping.",
    504: "The detector took too long.",
  }[status] || "The server could not detect on this picture.";
  return `${start} The server says: ${message}`;
}

// A number of 2 to 8 if a WebP is to be turned or mirrored, as EXIF counts. Browsers do that for every other kind.
async function webpTurn(blob) {
  const view = new DataView(await blob.arrayBuffer());
  const word = (at) => (at + 4 <= view.byteLength ? view.getUint32(at) : 0);
  if (word(0) !== 0x52494646 || word(8) !== 0x57454250) return 1; // RIFF, WEBP
  let at = 12;
  while (at + 8 <= view.byteLength && word(at) !== 0x45584946) at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) % 2); // EXIF
  let tiff = at + 8;
  if (word(tiff) === 0x45786966) tiff += 6; // some writers put "Exif" and two zeros before it
  if (tiff + 8 > view.byteLength) return 1;
  const little = view.getUint16(tiff) === 0x4949;
  const entries = tiff + view.getUint32(tiff + 4, little) + 2;
  if (entries > view.byteLength) return 1;
  const count = view.getUint16(entries - 2, little);
  for (let entry = entries; entry < entries + 12 * count && entry + 12 <= view.byteLength; entry += 12)
    if (view.getUint16(entry, little) === 0x0112) return view.getUint16(entry + 8, little);
  return 1;
}

async function detect(blob, name) {
  stopCamera();
  const own = ++number;
  problem("");
  note("");
  element("busy").hidden = false;
  try {
    // Browsers turn a photo as its EXIF data asks, and so does the server.
    const work = [ask(blob), createImageBitmap(blob).catch(() => null), webpTurn(blob).catch(() => 1)];
    const [answer, bitmap, turn] = await Promise.all(work);
    if (own !== number) return;
    const fits = bitmap && bitmap.width === answer.width && bitmap.height === answer.height && turn === 1;
    if (!bitmap) note("This browser cannot show pictures of this kind: the boxes are drawn without it.");
    else if (!fits) note("This browser does not turn this picture upright as the server does: the boxes are drawn without it.");
    picture = { name, bitmap: fits ? bitmap : null, ...answer };
    show();
  } catch (error) {
    if (own === number) problem(error.message);
  } finally {
    if (own === number) element("busy").hidden = true;
  }
}

// ---- camera: the next frame is sent when the answer to the last one is there

async function startCamera() {
  if (!navigator.mediaDevices) {
    problem("A browser gives a page the camera only over https, or from this very machine (localhost).");
    return;
  }
  problem("");
  note("");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const reasons = { NotAllowedError: "it was not allowed", NotFoundError: "there is none", NotReadableError: "another program uses it" };
    problem(`The camera cannot be used: ${reasons[error.name] || error.message}.`);
    return;
  }
  const own = ++number;
  element("busy").hidden = true;
  element("camera").setAttribute("aria-pressed", "true");
  const video = element("video");
  video.srcObject = stream;
  await video.play().catch(() => {});
  const frame = document.createElement("canvas");
  while (own === number && stream) {
    const shrink = Math.min(1, FRAME_SIDE / Math.max(video.videoWidth, video.videoHeight, 1));
    frame.width = Math.max(1, Math.round(video.videoWidth * shrink));
    frame.height = Math.max(1, Math.round(video.videoHeight * shrink));
    frame.getContext("2d").drawImage(video, 0, 0, frame.width, frame.height);
    try {
      const blob = await new Promise((done) => frame.toBlob(done, "image/jpeg", 0.9));
      const [answer, bitmap] = await Promise.all([ask(blob), createImageBitmap(frame)]);
      if (own !== number) return;
      picture = { name: "camera.jpg", bitmap, ...answer };
      show();
    } catch (error) {
      if (own !== number) return;
      problem(error.message);
      stopCamera();
    }
  }
}

function stopCamera() {
  if (!stream) return;
  number += 1;
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  element("camera").setAttribute("aria-pressed", "false");
}

// ---- what is shown

const threshold = () => Number(element("score").value);
const shown = () => (picture ? picture.detections.filter((it) => it.score >= threshold()) : []);

function colour(name) {
  const index = Math.max(0, server.classes.indexOf(name));
  return `hsl(${Math.round((index * 137.508 + 212) % 360)} 85% 66%)`;
}

function show() {
  element("threshold").textContent = threshold().toFixed(2);
  draw();
  list();
  element("coco").disabled = element("yolo").disabled = !picture;
}

function draw() {
  if (!picture) return;
  const { bitmap, width, height } = picture;
  element("stage").classList.add("filled");
  element("hint").hidden = true;
  const longer = Math.max(width, height);
  const zoom = longer < SIDES[0] ? Math.ceil(SIDES[0] / longer) : Math.min(1, SIDES[1] / longer);
  canvas.width = Math.round(width * zoom);
  canvas.height = Math.round(height * zoom);
  canvas.style.setProperty("--aspect", width / height);
  pen.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0); // from here on in pixels of the picture
  if (bitmap) pen.drawImage(bitmap, 0, 0);
  // Of all sizes of pictures the lines and letters are as thick on the screen.
  const unit = width / Math.max(1, canvas.getBoundingClientRect().width);
  const detections = shown();
  const faded = (it) => highlighted && it !== highlighted;
  for (const it of [...detections].reverse()) mask(it, faded(it));
  for (const it of [...detections].reverse()) box(it, unit, faded(it));
  for (const it of [...detections].reverse()) dots(it, unit, faded(it));
  if (highlighted && detections.includes(highlighted)) box(highlighted, unit, false);
  canvas.setAttribute("aria-label", `${picture.name} with ${detections.length} boxes`);
}

function box(it, unit, faded) {
  const [x1, y1, x2, y2] = it.box;
  pen.globalAlpha = faded ? 0.2 : 1;
  pen.lineWidth = (it === highlighted ? 4 : 2) * unit;
  pen.strokeStyle = colour(it.class);
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  const text = `${it.class} ${it.score.toFixed(2)}`;
  pen.font = `600 ${12 * unit}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  const wide = pen.measureText(text).width + 6 * unit;
  const high = 16 * unit;
  const left = Math.max(0, Math.min(x1, picture.width - wide));
  const top = y1 >= high ? y1 - high : Math.min(y1, picture.height - high);
  pen.fillStyle = colour(it.class);
  pen.fillRect(left, top, wide, high);
  pen.fillStyle = "#000";
  pen.fillText(text, left + 3 * unit, top + 2 * unit);
  pen.globalAlpha = 1;
}

function mask(it, faded) {
  if (!it.mask) return;
  it.shape ??= shape(it.mask);
  pen.globalAlpha = faded ? 0.1 : 0.45;
  pen.fillStyle = colour(it.class);
  pen.fill(it.shape);
  pen.globalAlpha = 1;
}

// The pixels of a mask: its runs go down the columns of the picture, background and object in turn.
function shape({ size, counts }) {
  const path = new Path2D();
  const height = size[0];
  let start = 0;
  runs(counts).forEach((run, index) => {
    for (let at = start; index % 2 && at < start + run; ) {
      const end = Math.min(start + run, at - (at % height) + height); // of the run, or of the column
      path.rect(Math.floor(at / height), at % height, 1, end - at);
      at = end;
    }
    start += run;
  });
  return path;
}

// As COCO compresses them: five bits of a number in each character, the lowest first, one that says whether it goes on,
// and from the fourth number on only what it differs by from the number two before.
function runs(counts) {
  const result = [];
  for (let place = 0; place < counts.length; ) {
    let value = 0;
    let unit = 1;
    let digit;
    do {
      digit = counts.charCodeAt(place++) - 48;
      value += (digit & 31) * unit;
      unit *= 32;
    } while (digit & 32);
    if (digit & 16) value -= unit;
    result.push(result.length > 2 ? value + result[result.length - 2] : value);
  }
  return result;
}

const likely = (point) => point.score > 0;

function dots(it, unit, faded) {
  pen.globalAlpha = faded ? 0.2 : 1;
  pen.lineWidth = unit;
  pen.strokeStyle = "#000";
  pen.fillStyle = colour(it.class);
  for (const { x, y } of (it.keypoints || []).filter(likely)) {
    pen.beginPath();
    pen.arc(x, y, 3.5 * unit, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

function list() {
  const detections = shown();
  const groups = new Map();
  for (const it of detections) groups.set(it.class, [...(groups.get(it.class) || []), it]);
  const parts = [];
  for (const [name, members] of groups) {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colour(name);
    const title = document.createElement("h2");
    title.append(swatch, `${name}: ${members.length}`);
    const rows = document.createElement("ul");
    rows.className = "rows";
    rows.append(...members.map(row));
    parts.push(title, rows);
  }
  element("list").replaceChildren(...parts);
  const total = picture ? picture.detections.length : 0;
  element("count").textContent = picture ? `${detections.length} of ${total} ${total === 1 ? "detection" : "detections"}` : "No detections yet";
}

function row(it) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = it.score.toFixed(2);
  button.title = it.box.map((side) => side.toFixed(0)).join(", ");
  button.setAttribute("aria-label", `${it.class}, score ${it.score.toFixed(2)}, box ${button.title}`);
  const highlight = (value) => () => { highlighted = value; draw(); };
  for (const event of ["mouseenter", "focus"]) button.addEventListener(event, highlight(it));
  for (const event of ["mouseleave", "blur"]) button.addEventListener(event, highlight(null));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// ---- downloads

function coco() {
  const ids = server.category_ids.every(Number.isInteger) ? server.category_ids : server.classes.map((_, index) => index + 1);
  const annotations = shown().map((it, index) => {
    const [x1, y1, x2, y2] = it.box;
    return {
      id: index + 1, image_id: 1, category_id: ids[server.classes.indexOf(it.class)],
      bbox: [x1, y1, x2 - x1, y2 - y1], area: (x2 - x1) * (y2 - y1), iscrowd: 0, score: it.score,
      ...(it.mask && { segmentation: it.mask }),
      ...(it.keypoints && { keypoints: it.keypoints.flatMap((at) => (likely(at) ? [at.x - 0.5, at.y - 0.5, 2] : [0, 0, 0])) }),
    };
  });
  const points = shown().find((it) => it.keypoints)?.keypoints.map((point) => point.name);
  return JSON.stringify({
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    categories: server.classes.map((name, index) => ({ id: ids[index], name, ...(points && { keypoints: points }) })),
    annotations,
  }, null, 1);
}

function yolo() {
  const { width, height } = picture;
  return shown().map((it) => {
    const [x1, y1, x2, y2] = it.box;
    const shares = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height];
    return [server.classes.indexOf(it.class), ...shares.map((share) => share.toFixed(6))].join(" ") + "\n";
  }).join("");
}

function download(text, suffix, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = picture.name.replace(/\.[^.]*$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- what people do

function take(files) {
  if (files.length) detect(files[0], files[0].name || "pasted.png");
  if (files.length > 1) note("Several files came: the first one is shown.");
}

element("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
element("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
element("score").addEventListener("input", show);
element("coco").addEventListener("click", () => download(coco(), ".json", "application/json"));
element("yolo").addEventListener("click", () => download(yolo(), ".txt", "text/plain"));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else problem("What was dropped is no file. Save the picture first, then drop its file.");
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
window.addEventListener("resize", draw);
about();
