// The map: up to some 100,000 points on a canvas. Points are written into the picture's memory, which takes 4 ms for
// 50,000 and needs no graphics card; a page of our own, as kept libraries for this need WebGL and inline styles.
//
// Drag moves, the wheel and two fingers zoom, Shift and drag (or the lasso button) selects into the sheet below.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const map = document.getElementById("map");
  const base = map.dataset.base;
  const plane = map.querySelector(".plane");
  const canvas = plane.querySelector("canvas");
  const outline = plane.querySelector("path");
  const card = plane.querySelector(".hover");
  const waiting = plane.querySelector(".waiting");
  const tools = plane.querySelector(".tools");
  const keys = map.querySelector(".keys");
  const lasso = plane.querySelector("[data-lasso]");
  const below = document.getElementById("chosen");
  const root = below.querySelector(".sheet");
  const bar = below.querySelector(".actions");
  const sheet = Lookalike.sheet(root);
  const context = canvas.getContext("2d", {alpha: false});
  const MOST = 400; // tiles in the sheet below

  let points = null; // {n, ids, xy, cluster, video, category, confidence, …the header}
  let by = "cluster";
  let only = null; // the key that is lit, null: all
  let colours = null; // Uint32Array (n): what each point is painted with
  let chosen = null; // Uint8Array (n): 1 = selected
  let view = {x: 0, y: 0, zoom: 1}; // what is in the middle, in map units, and how near
  let image = null;
  let grid = null;
  let asked = false;
  let hovered = -1;

  // --- colours ---

  const pack = (r, g, b) => (255 << 24) | (b << 16) | (g << 8) | r;
  const parse = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  function rgb(text) {
    parse.fillStyle = "#888";
    parse.fillStyle = text; // a colour that is none changes nothing
    parse.fillRect(0, 0, 1, 1);
    return parse.getImageData(0, 0, 1, 1).data;
  }
  const variable = (name) => {
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    plane.append(probe);
    const text = getComputedStyle(probe).color;
    probe.remove();
    return pack(...rgb(text));
  };
  const isDark = () => {
    const [r, g, b] = rgb(getComputedStyle(plane).backgroundColor);
    return r + g + b < 384;
  };
  // the golden angle sets neighbours in the list far apart; three rings of lightness tell the turns apart
  const hue = (i) => pack(...rgb(`oklch(${[.62, .74, .52][i % 3] + (isDark() ? .06 : 0)} .15 ${(i * 137.508) % 360})`));
  const ramp = (share) => pack(...rgb(`oklch(${.45 + .4 * share} ${.08 + .1 * share} ${285 - 190 * share})`));

  // By what points are coloured: the key of each, and what keys are called.
  const ways = {
    cluster: {of: (i) => points.cluster[i], name: (key) => (key < 0 ? "like nothing else" : points.clusters[key]), none: -1},
    category: {of: (i) => points.category[i], name: (key) => (key < 0 ? "not named" : points.categories[key]), none: -1},
    video: {of: (i) => points.video[i], name: (key) => points.videos[key]},
    confidence: {
      of: (i) => (points.category[i] < 0 ? -1 : Math.min(9, Math.floor(points.confidence[i] / 25.6))),
      name: (key) => (key < 0 ? "not named" : `${key * 10} to ${key * 10 + 10} %`),
      none: -1,
    },
  };

  function paint() {
    const way = ways[by];
    const grey = variable("--line");
    const known = new Map();
    const numbers = new Map();
    colours = new Uint32Array(points.n);
    for (let i = 0; i < points.n; i++) {
      const key = way.of(i);
      if (!known.has(key)) {
        const own = by === "category" && points.colours[points.categories[key]];
        known.set(key, key === way.none ? grey : own ? pack(...rgb(own)) : by === "confidence" ? ramp(key / 9) : hue(key));
      }
      colours[i] = only === null || only === key ? known.get(key) : 0; // 0: not shown
      numbers.set(key, (numbers.get(key) || 0) + 1);
    }
    const order = [...numbers].sort((a, b) => (by === "confidence" ? b[0] - a[0] : b[1] - a[1]));
    keys.replaceChildren(...order.slice(0, 200).map(([key, number]) => {
      const item = document.createElement("li");
      const button = item.appendChild(document.createElement("button"));
      button.type = "button";
      button.setAttribute("aria-pressed", String(only === key));
      button.title = "Show only these";
      const dot = button.appendChild(document.createElement("canvas"));
      dot.width = dot.height = 1;
      const colour = known.get(key);
      const ink = dot.getContext("2d");
      ink.fillStyle = `rgb(${colour & 255}, ${(colour >> 8) & 255}, ${(colour >> 16) & 255})`;
      ink.fillRect(0, 0, 1, 1);
      const name = button.appendChild(document.createElement("span"));
      name.className = "name";
      name.textContent = way.name(key);
      const count = button.appendChild(document.createElement("span"));
      count.className = "number";
      count.textContent = number;
      button.addEventListener("click", () => {
        only = only === key ? null : key;
        paint();
      });
      return item;
    }));
    redraw();
  }

  // --- drawing ---

  const ratio = () => Math.min(devicePixelRatio || 1, 2);
  const unit = () => (Math.min(canvas.width, canvas.height) / 2) * 0.94 * view.zoom; // pixels per map unit
  const toScreen = (i) => [
    (points.xy[2 * i] - view.x) * unit() + canvas.width / 2,
    (points.xy[2 * i + 1] - view.y) * unit() + canvas.height / 2,
  ];
  const toMap = (x, y) => [(x - canvas.width / 2) / unit() + view.x, (y - canvas.height / 2) / unit() + view.y];

  let due = false;
  function redraw() {
    if (due || !points) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      draw();
    });
  }

  function draw() {
    const began = performance.now();
    const [width, height] = [canvas.width, canvas.height];
    if (!image || image.width !== width || image.height !== height) image = context.createImageData(width, height);
    const memory = new Uint32Array(image.data.buffer);
    memory.fill(variableCache.surface);
    const scale = unit();
    const [left, top] = [width / 2 - view.x * scale, height / 2 - view.y * scale];
    const radius = Math.max(1, Math.round(Math.min(6, (1.3 + 0.55 * Math.log2(view.zoom + 1)) * (points.n > 20000 ? 0.8 : points.n > 3000 ? 1.25 : 1.8)) * ratio()));
    const spots = disc(radius, width);
    const rings = disc(radius + Math.round(2 * ratio()), width);
    const edge = radius + Math.round(2 * ratio()) + 1;
    const {xy, n} = points;
    const mark = chosen;
    for (let pass = 0; pass < (mark ? 2 : 1); pass++) {
      for (let i = 0; i < n; i++) {
        const colour = colours[i];
        if (!colour || (mark ? mark[i] !== pass : false)) continue;
        const x = (xy[2 * i] * scale + left) | 0;
        const y = (xy[2 * i + 1] * scale + top) | 0;
        if (x < edge || y < edge || x >= width - edge || y >= height - edge) continue;
        const at = y * width + x;
        if (pass) for (let s = 0; s < rings.length; s++) memory[at + rings[s]] = variableCache.ink;
        for (let s = 0; s < spots.length; s++) memory[at + spots[s]] = colour;
      }
    }
    context.putImageData(image, 0, 0);
    map.dataset.ms = (performance.now() - began).toFixed(1); // what a frame took, for tests
  }

  function disc(radius, width) {
    const found = [];
    for (let y = -radius; y <= radius; y++) for (let x = -radius; x <= radius; x++) if (x * x + y * y <= radius * radius + 0.5) found.push(y * width + x);
    return found;
  }

  const variableCache = {surface: 0, ink: 0};
  function look() {
    variableCache.surface = variable("--surface");
    variableCache.ink = variable("--ink");
    if (points) paint();
  }

  new ResizeObserver(() => {
    canvas.width = Math.round(plane.clientWidth * ratio());
    canvas.height = Math.round(plane.clientHeight * ratio());
    redraw();
  }).observe(plane);
  addEventListener("themechange", look);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);

  // --- moving and zooming ---

  function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
    const before = toMap(x, y);
    view.zoom = Math.min(400, Math.max(0.5, view.zoom * factor));
    const after = toMap(x, y);
    view.x += before[0] - after[0];
    view.y += before[1] - after[1];
    hide();
    redraw();
  }
  function move(dx, dy) {
    view.x -= dx / unit();
    view.y -= dy / unit();
    hide();
    redraw();
  }
  const place = (event) => {
    const frame = canvas.getBoundingClientRect();
    return [(event.clientX - frame.left) * ratio(), (event.clientY - frame.top) * ratio()];
  };

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...place(event));
  }, {passive: false});

  const fingers = new Map();
  let line = null;
  let moved = false;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    moved = false;
    const draws = event.shiftKey || lasso.getAttribute("aria-pressed") === "true";
    line = draws && fingers.size === 1 && points ? [place(event)] : null;
    hide();
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = place(event);
    const before = fingers.get(event.pointerId);
    if (!before) return hover(event, here);
    fingers.set(event.pointerId, here);
    if (line) {
      line.push(here);
      outline.setAttribute("d", `M${line.map(([x, y]) => `${(x / ratio()).toFixed(1)} ${(y / ratio()).toFixed(1)}`).join("L")}Z`);
    } else if (fingers.size === 1) move(here[0] - before[0], here[1] - before[1]);
    else {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const length = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      zoom(length(here) / Math.max(1, length(before)), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
    }
    moved ||= Math.hypot(here[0] - before[0], here[1] - before[1]) > 2;
    return undefined;
  });
  const up = (event) => {
    fingers.delete(event.pointerId);
    if (line) {
      outline.removeAttribute("d");
      if (line.length > 3) choose(line);
      line = null;
    } else if (!moved && event.type === "pointerup" && points) {
      const found = nearest(...place(event));
      if (found >= 0) location.href = `${base}/keyframes/${points.ids[found]}`;
    }
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => hide());
  canvas.addEventListener("keydown", (event) => {
    const step = 80 * ratio();
    const does = {
      ArrowLeft: () => move(step, 0), ArrowRight: () => move(-step, 0), ArrowUp: () => move(0, step), ArrowDown: () => move(0, -step),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: all, Escape: close, l: () => lasso.click(),
    };
    if (event.ctrlKey || event.metaKey || !(event.key in does)) return;
    event.preventDefault();
    does[event.key]();
  });
  function all() {
    view = {x: 0, y: 0, zoom: 1};
    redraw();
  }
  plane.querySelector("[data-all]").addEventListener("click", all);
  for (const button of plane.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => zoom(Number(button.dataset.zoom)));
  lasso.addEventListener("click", () => {
    const on = lasso.getAttribute("aria-pressed") !== "true";
    lasso.setAttribute("aria-pressed", String(on));
    plane.classList.toggle("lassoing", on);
  });
  plane.querySelector("[data-colour-by]").addEventListener("change", (event) => {
    by = event.target.value;
    only = null;
    paint();
  });

  // --- which point is it ---

  const CELLS = 256;
  const cellOf = (value) => Math.min(CELLS - 1, Math.max(0, Math.floor((value + 1) * CELLS / 2)));
  function fileAway() {
    const first = new Uint32Array(CELLS * CELLS + 1);
    const cell = new Uint32Array(points.n);
    for (let i = 0; i < points.n; i++) first[(cell[i] = cellOf(points.xy[2 * i + 1]) * CELLS + cellOf(points.xy[2 * i])) + 1]++;
    for (let c = 0; c < CELLS * CELLS; c++) first[c + 1] += first[c];
    const next = first.slice();
    const members = new Uint32Array(points.n);
    for (let i = 0; i < points.n; i++) members[next[cell[i]]++] = i;
    grid = {first, members};
  }
  function nearest(x, y) {
    const [mx, my] = toMap(x, y);
    const reach = (10 * ratio()) / unit();
    let best = reach * reach;
    let found = -1;
    for (let row = cellOf(my - reach); row <= cellOf(my + reach); row++) {
      for (let c = row * CELLS + cellOf(mx - reach); c <= row * CELLS + cellOf(mx + reach); c++) {
        for (let k = grid.first[c]; k < grid.first[c + 1]; k++) {
          const i = grid.members[k];
          const distance = (points.xy[2 * i] - mx) ** 2 + (points.xy[2 * i + 1] - my) ** 2;
          if (distance < best && colours[i]) [best, found] = [distance, i];
        }
      }
    }
    return found;
  }
  function hover(event, here) {
    if (!points || event.pointerType === "touch") return;
    const found = nearest(...here);
    if (found < 0) return hide();
    if (found !== hovered) {
      hovered = found;
      card.querySelector("img").src = map.dataset.thumbnail.replace("/0.jpg", `/${points.ids[found]}.jpg`);
      const words = [ways.category.name(points.category[found])];
      if (points.category[found] >= 0 && points.confidence[found] < 255) words.push(`${Math.round(points.confidence[found] / 2.55)} %`);
      card.querySelector(".about").textContent = `${words.join(" ")} · ${ways.cluster.name(points.cluster[found])} · ${points.videos[points.video[found]]}`;
    }
    card.hidden = false;
    const [x, y] = [here[0] / ratio(), here[1] / ratio()];
    card.style.left = `${x + 260 > plane.clientWidth ? x - 256 : x + 16}px`;
    card.style.top = `${Math.max(8, Math.min(y - 60, plane.clientHeight - card.offsetHeight - 8))}px`;
    return undefined;
  }
  function hide() {
    hovered = -1;
    card.hidden = true;
  }

  // --- selecting ---

  function choose(polygon) {
    const inMap = polygon.map(([x, y]) => toMap(x, y));
    const [xs, ys] = [inMap.map((p) => p[0]), inMap.map((p) => p[1])];
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const inside = (x, y) => {
      let odd = false;
      for (let a = 0, b = inMap.length - 1; a < inMap.length; b = a++) {
        if (ys[a] > y !== ys[b] > y && x < ((xs[b] - xs[a]) * (y - ys[a])) / (ys[b] - ys[a]) + xs[a]) odd = !odd;
      }
      return odd;
    };
    chosen = new Uint8Array(points.n);
    const ids = [];
    for (let i = 0; i < points.n; i++) {
      const [x, y] = [points.xy[2 * i], points.xy[2 * i + 1]];
      if (!colours[i] || x < left || x > right || y < top || y > bottom || !inside(x, y)) continue;
      chosen[i] = 1;
      ids.push(points.ids[i]);
    }
    if (ids.length) open(ids);
    else close();
    redraw();
  }

  async function open(ids) {
    // what is like each other side by side: the order of the list is that of clusters
    const rows = new Map();
    for (let i = 0; i < points.n; i++) if (chosen[i]) rows.set(points.ids[i], points.cluster[i]);
    ids.sort((a, b) => rows.get(a) - rows.get(b) || a - b);
    below.hidden = false;
    plane.classList.add("low");
    below.querySelector("[data-more]").textContent = ids.length > MOST ? `${ids.length} selected on the map; the first ${MOST} are shown. Zoom in, or select fewer.` : "";
    const shown = ids.slice(0, MOST);
    const parts = [];
    for (let at = 0; at < shown.length; at += 120) {
      const answer = await fetch(`${base}/tiles?ids=${shown.slice(at, at + 120).join(",")}`, {headers: {Accept: "text/html"}}).catch(() => null);
      if (!answer?.ok) return Lookalike.complain("The server does not answer; try again.");
      parts.push(await answer.text());
    }
    sheet.set(parts.join(""));
    sheet.choose(sheet.ids);
    return undefined;
  }
  function close() {
    below.hidden = true;
    plane.classList.remove("low");
    sheet.set("");
    chosen = null;
    redraw();
  }

  bar.querySelector("[data-close]").addEventListener("click", close);

  // --- having the points ---

  async function load() {
    const answer = await fetch(`${base}/map/points`, {headers: {Accept: "application/octet-stream"}}).catch(() => null);
    if (!answer?.ok) return;
    const data = await answer.arrayBuffer();
    const length = Number(new DataView(data).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 8, length)));
    let at = 8 + length;
    const take = (Kind, each) => {
      const array = new Kind(data, at, header.n * each);
      at += array.byteLength;
      return array;
    };
    points = {
      ...header, ids: take(Float64Array, 1), xy: take(Float32Array, 2), cluster: take(Int32Array, 1), video: take(Uint32Array, 1),
      category: take(Int16Array, 1), confidence: take(Uint8Array, 1),
    };
    chosen = null;
    canvas.hidden = tools.hidden = false; // before there are points a canvas is a black hole
    fileAway();
    look();
    map.dataset.points = points.n;
  }

  async function follow() {
    let state = await Lookalike.get(`${base}/map/state`).catch(() => null);
    if (state && !state.fresh && state.keyframes && !asked) {
      asked = true;
      state = await Lookalike.post(`${base}/map/draw`).catch(() => state);
    }
    if (!state) return setTimeout(follow, 5000);
    if (state.drawn && (!points || state.fresh && points.n !== state.keyframes)) await load();
    waiting.classList.toggle("note", Boolean(points));
    if (!state.keyframes) waiting.textContent = "There are no keyframes yet. The map is drawn when the first videos are done; the overview shows how far those are.";
    else if (state.fresh) waiting.textContent = "";
    else if (state.state === "failed") {
      const button = document.createElement("button");
      button.className = "compact";
      button.textContent = "Try again";
      button.addEventListener("click", async () => {
        await Lookalike.post(`${base}/map/draw`, {again: true});
        follow();
      }, {once: true});
      waiting.replaceChildren(`${state.error} `, button);
      return undefined;
    } else waiting.textContent = points ? "The map is being drawn anew, with newer keyframes; it changes here by itself …" : `The map of ${state.keyframes} keyframes is being drawn; it appears here by itself, after the videos that are at work before it …`;
    return setTimeout(follow, state.fresh ? 30000 : 2000);
  }

  Lookalike.labelling(root, bar);
  look();
  follow();
});
