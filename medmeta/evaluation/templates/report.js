"use strict";
// The slice viewer: a film is a JPEG with the slices below each other, and a PNG of the same size a method,
// whose grey is 1 where the truth is and 2 where the prediction is.
(() => {
  const root = document.querySelector(".viewer");
  if (!root) return;
  const films = JSON.parse(document.getElementById("film-data").textContent);
  const [pick, method, slider, truth, found] = ["pick", "method", "slice", "truth", "found"].map((n) => root.querySelector(`[name=${n}]`));
  const [canvas, stage, said] = ["canvas", ".stage", "output"].map((n) => root.querySelector(n));
  const colours = { 1: root.dataset.truth, 2: root.dataset.found };
  let film, image, bits, loads = 0;

  const load = (src) => new Promise((done, failed) => { const i = new Image(); i.onload = () => done(i); i.onerror = failed; i.src = src; });

  async function open() {
    const mine = ++loads;
    const next = films[Number(pick.value)];
    const [picture, mask] = await Promise.all([load(next.image), load(next.masks[method.value])]);
    if (mine !== loads) return; // another was picked meanwhile
    const same = film === next;
    [film, image] = [next, picture];
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [film.columns, film.rows * film.count];
    const paper = sheet.getContext("2d", { willReadFrequently: true });
    paper.drawImage(mask, 0, 0);
    const rgba = paper.getImageData(0, 0, sheet.width, sheet.height).data;
    bits = new Uint8Array(rgba.length / 4);
    for (let i = 0; i < bits.length; i++) bits[i] = rgba[4 * i];
    slider.max = film.count - 1;
    if (!same) slider.value = film.start;
    draw();
  }

  function choose() {
    const had = method.value;
    const names = films[Number(pick.value)].methods;
    method.replaceChildren(...Object.entries(names).map(([key, text]) => new Option(text, key)));
    if (had in names) method.value = had;
    return open();
  }

  // the border of a mask, along the edges of its pixels
  function outline(paper, bit, scale, dashed) {
    const { rows, columns } = film, from = Number(slider.value) * rows * columns;
    const is = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && (bits[from + r * columns + c] & bit);
    const high = scale * film.aspect, path = new Path2D();
    let count = 0;
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
      if (!is(r, c)) continue;
      count++;
      const [x, y, right, low] = [c * scale, r * high, (c + 1) * scale, (r + 1) * high];
      if (!is(r - 1, c)) { path.moveTo(x, y); path.lineTo(right, y); }
      if (!is(r + 1, c)) { path.moveTo(x, low); path.lineTo(right, low); }
      if (!is(r, c - 1)) { path.moveTo(x, y); path.lineTo(x, low); }
      if (!is(r, c + 1)) { path.moveTo(right, y); path.lineTo(right, low); }
      if (dashed && bit === 2) { paper.globalAlpha = 0.22; paper.fillStyle = colours[bit]; paper.fillRect(x, y, right - x, low - y); paper.globalAlpha = 1; }
    }
    paper.strokeStyle = colours[bit];
    paper.lineWidth = 2.5;
    paper.stroke(path);
    return count;
  }

  function draw() {
    const wide = film.columns, high = film.rows * film.aspect;
    const scale = Math.min(560 / wide, 560 / high);
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(high * scale);
    const paper = canvas.getContext("2d"), number = Number(slider.value);
    paper.drawImage(image, 0, number * film.rows, wide, film.rows, 0, 0, canvas.width, canvas.height);
    const inside = (bit) => { let n = 0; for (let i = number * film.rows * wide; i < (number + 1) * film.rows * wide; i++) n += bits[i] & bit ? 1 : 0; return n; };
    if (found.checked) outline(paper, 2, scale, true);
    if (truth.checked) outline(paper, 1, scale, false);
    const text = [1, 2].map((bit) => `${bit === 1 ? "truth" : "prediction"} ${inside(bit) ? "in this slice" : "not here"}`);
    const step = film.step > 1 ? ` (every ${film.step} of the scan)` : "";
    said.value = `Slice ${number + 1} of ${film.count}${step}; ${text.join(", ")}.`;
    slider.setAttribute("aria-valuetext", `slice ${number + 1} of ${film.count}`);
  }

  function go(by) { slider.value = Number(slider.value) + by; draw(); }
  function other(by) { pick.value = (Number(pick.value) + by + films.length) % films.length; choose(); }

  films.forEach((one, i) => pick.add(new Option(one.title, i)));
  pick.addEventListener("change", choose);
  method.addEventListener("change", open);
  for (const box of [truth, found]) box.addEventListener("change", draw);
  slider.addEventListener("input", draw);
  root.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const flip = (box) => { box.checked = !box.checked; draw(); };
    const keys = {
      ArrowUp: () => go(1), ArrowRight: () => go(1), ArrowDown: () => go(-1), ArrowLeft: () => go(-1),
      PageUp: () => go(5), PageDown: () => go(-5), Home: () => go(-film.count), End: () => go(film.count),
      t: () => flip(truth), p: () => flip(found), n: () => other(1), b: () => other(-1),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act && film) { event.preventDefault(); act(); }
  });
  // the wheel scrolls the page until the picture has the focus
  stage.addEventListener("wheel", (event) => {
    if (document.activeElement !== stage) return;
    event.preventDefault();
    go(Math.sign(event.deltaY));
  }, { passive: false });
  let from = null;
  stage.addEventListener("pointerdown", (event) => { from = { x: event.clientX, y: event.clientY, at: Number(slider.value) }; stage.setPointerCapture(event.pointerId); });
  stage.addEventListener("pointermove", (event) => {
    if (!from || !film) return;
    const away = event.pointerType === "mouse" ? from.y - event.clientY : event.clientX - from.x; // up and down scrolls the page on a phone
    const next = Math.max(0, Math.min(film.count - 1, from.at + Math.round(away / Math.max(4, 280 / film.count))));
    if (next !== Number(slider.value)) { slider.value = next; draw(); }
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { from = null; });
  choose();
})();

// Tables that can be sorted by a click on the head of a column; what is no number sorts last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [a, b].map((row) => (head.dataset.text === undefined ? Number(key(row)) : NaN));
      if (Number.isNaN(x) && Number.isNaN(y)) return (up ? 1 : -1) * key(a).localeCompare(key(b));
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return up ? x - y : y - x;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  });
}
