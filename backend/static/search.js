// The page "Search". What is searched by stands in the address, so that a search can be kept, sent, and gone back from:
//
//   ?category=Car&keyframe=5&unlike=6&region=5,.1,.2,.3,.4&picture=<digest>&text=…&labelled=no&cluster=c0007&task=12
//
// A region is keyframe, x, y, width, height, as shares of the picture; a picture is known by its digest for a day.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("search");
  const root = document.getElementById("sheet");
  const bar = document.querySelector(".actions");
  const note = document.getElementById("note");
  const further = document.getElementById("further");
  const drop = document.getElementById("drop");
  const file = drop.querySelector("input");
  const {sheet} = root;
  const FIELDS = ["category", "text", "labelled", "cluster", "task"]; // those that the form may have
  const [STEP, MOST] = [Number(form.dataset.step), Number(form.dataset.most)];
  const LARGEST = 2e6; // bytes that are sent as they are; a model looks at some 224 × 224 points
  const SIDE = 1600;
  const SHOWN = 12; // examples
  const hint = note.textContent;
  const bitmaps = new Map(); // what pictures look like, by digest; only on this page
  let query = read();
  let brought = null; // {bitmap, image}: a picture that the server has not seen yet
  let top = STEP;
  let turn = 0; // of several searches only the last one is shown

  // --- the query and the address ---

  function read() {
    const said = new URLSearchParams(location.search);
    const fields = Object.fromEntries(FIELDS.map((name) => [name, said.get(name) ?? ""]));
    const ids = (name) => said.getAll(name).map(Number).filter(Number.isSafeInteger);
    const regions = said.getAll("region").map((text) => text.split(",").map(Number)).filter((one) => one.length === 5 && one.every(Number.isFinite));
    return {...fields, like: ids("keyframe"), unlike: ids("unlike"), regions, pictures: said.getAll("picture")};
  }

  function address() {
    const said = new URLSearchParams();
    for (const name of FIELDS) if (query[name]) said.append(name, query[name]);
    for (const id of query.like) said.append("keyframe", id);
    for (const id of query.unlike) said.append("unlike", id);
    for (const region of query.regions) said.append("region", region.join(","));
    for (const digest of query.pictures) said.append("picture", digest);
    return said.size ? `?${said}` : "";
  }

  function body() {
    const like = [...query.like, ...query.regions.map(([keyframe, ...box]) => ({keyframe, box})), ...query.pictures.map((asked) => ({asked}))];
    if (brought) like.push({image: brought.image});
    const sent = {like, unlike: query.unlike, top};
    for (const name of ["category", "text"]) if (query[name]) sent[name] = query[name];
    if (query.labelled) sent.labelled = query.labelled === "yes";
    if (query.cluster) sent.clusters = [query.cluster];
    if (query.task) sent.tasks = [/^\d+$/.test(query.task) ? Number(query.task) : query.task]; // what is no number, the server says
    return sent;
  }

  const isEmpty = () => !(query.category || query.text || query.like.length || query.regions.length || query.pictures.length || brought);

  // --- searching ---

  async function answerOf(sent, mine) {
    for (;;) {
      const found = await Lookalike.post(`${bar.dataset.base}/search`, sent);
      if (mine !== turn || found.state !== "working") return found;
      note.textContent = found.message;
      await new Promise((done) => setTimeout(done, 1000));
      if (mine !== turn) return found;
    }
  }

  // again: the same search, with more results; back: what the address says, which is no step of its own.
  async function search({again = false, back = false} = {}) {
    const mine = ++turn;
    if (!again) top = STEP;
    const kept = again ? sheet.chosen : [];
    show();
    bar.hidden = isEmpty();
    if (isEmpty()) {
      sheet.set("");
      note.textContent = hint;
      keep(back);
      return;
    }
    note.textContent = "Looking …";
    root.setAttribute("aria-busy", "true");
    let found;
    try {
      found = await answerOf(body(), mine);
    } catch (error) {
      if (mine === turn) failed(error);
      return;
    }
    if (mine !== turn) return;
    root.removeAttribute("aria-busy");
    seen(found.asked);
    sheet.set(found.tiles); // our own server's template, which escapes every name
    sheet.choose(kept);
    keep(back);
    show();
    further.hidden = found.count < top || top >= MOST;
    note.textContent = told(found);
  }

  function failed(error) {
    root.removeAttribute("aria-busy");
    brought = null; // what cannot be read now cannot be read again
    sheet.set("");
    show();
    note.textContent = error.message;
  }

  function told(found) {
    if (!found.count) return `Nothing among ${found.searched} keyframes fits; search in all clusters and videos, labelled or not.`;
    const many = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
    const examples = query.like.length + query.regions.length + query.pictures.length;
    const by = [examples && `by ${many(examples, "example")}`, query.unlike.length && `away from ${query.unlike.length}`].filter(Boolean);
    const words = [`${many(found.count, "result")} out of ${many(found.searched, "keyframe")}${by.length ? `, ${by.join(", ")}` : ""}; most similar first.`];
    if (!found.complete) words.push("Newer keyframes are still being taken in.");
    return words.join(" ");
  }

  // A picture that was brought is known by its digest from now on.
  function seen(asked) {
    if (!brought) return;
    const digest = asked.find((one) => one.kind === "image" && !query.pictures.includes(one.asked))?.asked;
    if (digest) {
      bitmaps.set(digest, brought.bitmap);
      query.pictures.push(digest);
    }
    brought = null;
  }

  function keep(back) {
    const now = address();
    if (now === location.search) return;
    if (back) history.replaceState(null, "", now || location.pathname); // the same, written otherwise
    else history.pushState(null, "", now || location.pathname);
  }

  // --- what is searched by ---

  function show() {
    for (const name of FIELDS) if (form[name]) form[name].value = query[name];
    const chips = [
      ...query.regions.map((region, at) => chip(`A part of keyframe ${region[0]}`, "", () => query.regions.splice(at, 1), (canvas) => thumbnail(canvas, region[0], region.slice(1)))),
      ...query.pictures.map((digest, at) => chip("Your picture", "", () => query.pictures.splice(at, 1), bitmaps.has(digest) && ((canvas) => draw(canvas, bitmaps.get(digest))))),
      ...(brought ? [chip("Your picture", "", () => { brought = null; }, (canvas) => draw(canvas, brought.bitmap))] : []),
      ...several(query.like, "", "like"),
      ...several(query.unlike, "less ", "unlike"),
    ];
    const place = document.getElementById("examples");
    place.hidden = !chips.length;
    place.replaceChildren(...chips);
    showTab();
  }

  function several(ids, less, kind) {
    const chips = ids.slice(0, SHOWN).map((id) => chip(`${less}like keyframe ${id}`, kind, () => query[kind].splice(query[kind].indexOf(id), 1), (canvas) => thumbnail(canvas, id)));
    if (ids.length > SHOWN) chips.push(Object.assign(document.createElement("span"), {className: "muted", textContent: `and ${ids.length - SHOWN} more ${less}like these`}));
    return chips;
  }

  function chip(words, kind, remove, paint) {
    const box = document.createElement("span");
    box.className = `example ${kind}`;
    if (paint) {
      const canvas = box.appendChild(document.createElement("canvas"));
      Object.assign(canvas, {width: 112, height: 70});
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", words);
      paint(canvas);
    }
    if (!paint || kind === "unlike") box.append(kind === "unlike" ? "less like this" : words);
    const button = box.appendChild(document.createElement("button"));
    Object.assign(button, {type: "button", className: "quiet", textContent: "×", title: "Search without it"});
    button.setAttribute("aria-label", `Search without: ${words}`);
    button.addEventListener("click", () => {
      remove();
      search();
    });
    return box;
  }

  // The whole of a picture, or a part of it, as large as the canvas lets it be.
  function draw(canvas, picture, [x, y, width, height] = [0, 0, 1, 1]) {
    const [wide, high] = [width * picture.width, height * picture.height];
    const scale = Math.min(canvas.width / wide, canvas.height / high);
    const [left, up] = [(canvas.width - scale * wide) / 2, (canvas.height - scale * high) / 2];
    canvas.getContext("2d").drawImage(picture, x * picture.width, y * picture.height, wide, high, left, up, scale * wide, scale * high);
  }

  function thumbnail(canvas, keyframe, box) {
    const picture = new Image();
    picture.addEventListener("load", () => draw(canvas, picture, box));
    picture.src = `/thumbnails/${keyframe}.jpg`;
  }

  async function bring(picture) {
    try {
      const bitmap = await createImageBitmap(picture);
      const asItIs = ["image/jpeg", "image/png", "image/webp"].includes(picture.type) && picture.size <= LARGEST;
      brought = {bitmap, image: await base64(asItIs ? picture : await smaller(bitmap))};
    } catch {
      Lookalike.complain(`${picture.name || "This"} is no picture that the browser can read; take a JPEG, PNG or WebP`);
      return;
    }
    search();
  }

  function smaller(bitmap) {
    const canvas = document.createElement("canvas");
    const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
    Object.assign(canvas, {width: Math.max(1, Math.round(scale * bitmap.width)), height: Math.max(1, Math.round(scale * bitmap.height))});
    draw(canvas, bitmap);
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  }

  function base64(blob) {
    return new Promise((done, failed) => {
      const reader = new FileReader();
      reader.addEventListener("load", () => done(reader.result.split(",")[1]));
      reader.addEventListener("error", () => failed(reader.error));
      reader.readAsDataURL(blob);
    });
  }

  // --- the tab at Label Studio ---

  const tab = document.getElementById("tab");
  const [makeTab, toTab] = [tab.querySelector("button"), tab.querySelector("a")];
  const tabOf = async (category) => (await Lookalike.get(form.dataset.tabs)).tabs.find((one) => one.category === category);

  function showTab() {
    const {category} = query;
    if (tab.dataset.category === category && !tab.hidden) return;
    tab.dataset.category = category;
    tab.hidden = !category;
    toTab.hidden = true;
    makeTab.textContent = `Make “Similar to ${category}” a tab in Label Studio`;
    if (category) tabOf(category).then((found) => linkTab(category, found)).catch(() => {});
  }

  function linkTab(category, found) {
    if (!found?.url || tab.dataset.category !== category) return false;
    toTab.href = found.url;
    toTab.textContent = `“Similar to ${category}” in Label Studio ↗`;
    toTab.hidden = false;
    return true;
  }

  makeTab.addEventListener("click", async () => {
    const {category} = query;
    makeTab.disabled = true;
    try {
      await Lookalike.post(form.dataset.tabs, {category});
      Lookalike.say("The tab is being made; its link appears here");
      for (let tries = 0; tries < 60 && !linkTab(category, await tabOf(category)); tries += 1) await new Promise((done) => setTimeout(done, 1000));
      if (toTab.hidden) Lookalike.say("The tab takes longer than a minute; it comes as soon as a worker gets to it");
    } catch { /* it was said */ } finally {
      makeTab.disabled = false;
    }
  });

  // --- what people do ---

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    take();
  });
  form.addEventListener("change", ({target}) => { if (target.matches("select")) take(); });
  function take() {
    for (const name of FIELDS) if (form[name]) query[name] = form[name].value.trim();
    search();
  }
  further.addEventListener("click", () => {
    top = Math.min(MOST, top + STEP);
    search({again: true});
  });
  drop.querySelector("[data-choose]").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files[0]) bring(file.files[0]);
    file.value = "";
  });
  addEventListener("paste", ({clipboardData}) => { if (clipboardData.files[0]) bring(clipboardData.files[0]); });
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    if (!event.dataTransfer.files[0]) return;
    event.preventDefault();
    drop.classList.remove("over");
    bring(event.dataTransfer.files[0]);
  });
  addEventListener("popstate", () => {
    query = read();
    brought = null;
    search({back: true});
  });

  function round(ids, mine, others) {
    if (!ids.length) return;
    query[mine] = [...new Set([...query[mine], ...ids])];
    query[others] = query[others].filter((id) => !ids.includes(id));
    search();
  }
  Lookalike.labelling(root, bar, {
    does: {more: (ids) => round(ids, "like", "unlike"), less: (ids) => round(ids, "unlike", "like")},
    keys: {l: "more", k: "less"},
  });
  search({back: true});
});
