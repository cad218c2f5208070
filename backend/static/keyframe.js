// The page of one keyframe: its nearest come as soon as they are found, and are a sheet; a box drawn on the large picture
// is what one searches by.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const figure = document.querySelector(".large");
  const picture = figure.querySelector("img");
  const LEAST = 0.04; // of the picture's width and height: a smaller box was a click
  const STEP = 0.02;
  const within = (value, low, high) => Math.min(Math.max(value, low), high);
  let box = null; // [x, y, width, height] as shares of the picture
  let start = null;

  // Where the picture itself is within its element, which keeps its proportions.
  function frame() {
    const outer = picture.getBoundingClientRect();
    const scale = Math.min(outer.width / picture.naturalWidth, outer.height / picture.naturalHeight);
    const [width, height] = [scale * picture.naturalWidth, scale * picture.naturalHeight];
    return {left: outer.left + (outer.width - width) / 2, top: outer.top + (outer.height - height) / 2, width, height};
  }

  function place({clientX, clientY}) {
    const {left, top, width, height} = frame();
    return [within((clientX - left) / width, 0, 1), within((clientY - top) / height, 0, 1)];
  }

  // The box is a link to the search; arrows move it, with Shift they change its size.
  const link = Object.assign(document.createElement("a"), {className: "region", draggable: false, hidden: true});
  link.setAttribute("aria-label", "Search by this part; arrows move it, Shift and arrows change its size");
  figure.append(link);

  function show() {
    const [outer, inner] = [figure.getBoundingClientRect(), frame()];
    const [x, y, width, height] = box;
    Object.assign(link.style, {
      left: `${inner.left - outer.left - figure.clientLeft + x * inner.width}px`,
      top: `${inner.top - outer.top - figure.clientTop + y * inner.height}px`,
      width: `${width * inner.width}px`,
      height: `${height * inner.height}px`,
    });
    link.href = `${figure.dataset.search}?region=${[figure.dataset.keyframe, ...box.map((side) => side.toFixed(4))]}`;
    link.hidden = false;
  }

  figure.addEventListener("pointerdown", (event) => {
    if (event.button || !picture.naturalWidth || event.target === link || (event.pointerType === "touch" && !figure.classList.contains("marking"))) return;
    start = place(event);
    figure.setPointerCapture(event.pointerId);
  });
  figure.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = place(event);
    const next = [Math.min(x, start[0]), Math.min(y, start[1]), Math.abs(x - start[0]), Math.abs(y - start[1])];
    if (next[2] < LEAST || next[3] < LEAST) return;
    box = next;
    show();
  });
  for (const over of ["pointerup", "pointercancel"]) {
    figure.addEventListener(over, () => {
      if (start && box) {
        link.focus({preventScroll: true});
        document.querySelector("[data-marked]").textContent = "Click the box, or press Enter, to search by it";
      }
      start = null;
    });
  }
  document.querySelector("[data-mark]").addEventListener("click", () => {
    if (!picture.naturalWidth) return;
    figure.classList.add("marking"); // from now on a finger draws here
    box ??= [0.25, 0.25, 0.5, 0.5];
    show();
    link.focus({preventScroll: true});
    document.querySelector("[data-marked]").textContent = "Arrows move the box, with Shift they change its size; Enter searches by it";
  });
  link.addEventListener("keydown", (event) => {
    const [right, down] = {ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP]}[event.key] ?? [0, 0];
    if (!(right || down)) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere, an arrow goes to the sheet
    const [x, y, width, height] = box;
    box = event.shiftKey ? [x, y, within(width + right, LEAST, 1 - x), within(height + down, LEAST, 1 - y)] : [within(x + right, 0, 1 - width), within(y + down, 0, 1 - height), width, height];
    show();
  });
  addEventListener("resize", () => { if (box) show(); });
});
addEventListener("DOMContentLoaded", async () => {
  const now = document.querySelector(".now"); // in sight, however narrow the window is
  if (now) now.parentElement.scrollLeft = now.offsetLeft - (now.parentElement.clientWidth - now.offsetWidth) / 2;
  const root = document.querySelector("#nearest .sheet");
  const note = document.querySelector("#nearest [role=status]");
  const bar = document.querySelector(".actions");
  const scope = bar.querySelector("[data-scope]");
  const [what, said] = [document.getElementById("what"), document.getElementById("label")];
  function mark(category) {
    const before = [what.textContent, ...said.childNodes];
    what.textContent = category;
    said.replaceChildren(Object.assign(document.createElement("p"), {textContent: "labelled by you, just now"}));
    return () => {
      what.textContent = before[0];
      said.replaceChildren(...before.slice(1));
    };
  }
  Lookalike.labelling(root, bar, {mark});
  const tell = (number) => { if (scope) scope.textContent = number ? `Label ${number} as` : "Label this one as"; };
  root.addEventListener("sheet:change", ({detail}) => tell(detail.ids.length));
  tell(0);
  for (;;) {
    const answer = await fetch(root.dataset.nearest, {headers: {Accept: "text/html"}}).catch(() => null);
    if (answer?.status === 200 && !answer.redirected) {
      root.sheet.set(await answer.text());
      note.textContent = root.sheet.ids.length ? "" : "Nothing to compare it with yet.";
      return;
    }
    if (answer && answer.status !== 202) {
      note.textContent = "They cannot be shown now.";
      return;
    }
    await new Promise((done) => setTimeout(done, 2000)); // they are being taken in for the first search
  }
});
