// Drives the slice viewer as a person would, and writes what was seen into the page.
window.addEventListener("load", () => setTimeout(async () => {
  const seen = {}, root = document.querySelector(".viewer"), stage = root.querySelector(".stage");
  const [pick, method, slider, truth, found] = ["pick", "method", "slice", "truth", "found"].map((n) => root.querySelector(`[name=${n}]`));
  const canvas = root.querySelector("canvas"), wait = () => new Promise((done) => setTimeout(done, 120));
  const look = () => {
    const rgba = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let grey = 0, coloured = 0;
    for (let i = 0; i < rgba.length; i += 4) if (Math.abs(rgba[i] - rgba[i + 2]) > 40) coloured++; else if (rgba[i] > 20) grey++;
    return { grey, coloured, slice: Number(slider.value), said: root.querySelector("output").value };
  };
  const key = (name) => stage.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  const point = (kind, x, y, type) => stage.dispatchEvent(new PointerEvent(kind, { pointerId: 1, pointerType: type, clientX: x, clientY: y, bubbles: true }));
  stage.setPointerCapture = () => {}; // events of a script are no pointer of the system
  seen.scans = [...pick.options].map((o) => o.text);
  seen.methods = [...method.options].map((o) => o.text);
  seen.first = look();
  key("ArrowUp"); seen.up = look(); key("ArrowDown"); key("ArrowDown"); seen.down = look();
  key("End"); seen.end = look(); key("Home"); seen.home = look();
  slider.value = seen.first.slice; slider.dispatchEvent(new Event("input")); seen.slider = look();
  key("t"); seen.noTruth = look(); key("p"); seen.neither = look(); key("t"); key("p");
  point("pointerdown", 100, 100, "touch"); point("pointermove", 150, 100, "touch"); point("pointerup", 150, 100, "touch"); seen.swiped = look();
  key("n"); await wait(); seen.next = { at: pick.value, ...look() };
  method.value = "pixel-trees"; method.dispatchEvent(new Event("change")); await wait(); seen.other = look();
  const head = document.querySelectorAll("#patients th button")[2]; head.click();
  seen.sorted = [...document.querySelectorAll("#patients tbody tr")].map((row) => Number(row.cells[2].textContent));
  const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out);
}, 300));
