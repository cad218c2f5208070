// A sheet: a grid of keyframes that people select from. One for clusters, categories, search results and the map.
//
//   <div class="sheet" role="listbox" aria-multiselectable="true" aria-label="Members" data-categories='["Car", "Bus"]'>
//     {{ tile(t, selectable=true) }} …
//     <a class="more button" href="…?after=200">More</a>     optional: the next page, fetched when it comes into sight;
//   </div>                                                   its answer is tiles, and another .more if there is more
//
// Every .sheet with role="listbox" is made one when the page loads; call Lookalike.sheet(element) for one made later.
// It gives, and `element.sheet` is:
//
//   .ids          all keyframe ids in order            .chosen       the selected ones, in order
//   .choose(ids)  select these and no others           .add(ids)     … and these          .clear()
//   .remove(ids)  take tiles out; the focus moves on    .fade(ids, on) grey while a request is under way
//   .set(html)    other tiles (fragments of our server)  .press(event) a key that was pressed elsewhere on the page
//
// and says, as events of the element (they bubble):
//
//   sheet:change  detail {ids}                          what is selected has changed
//   sheet:digit   detail {ids, digit, category}         a digit was pressed: 1 is the first of data-categories; without
//                                                       ids only where data-own names a keyframe that is meant then
//   sheet:key     detail {ids, key}                     another letter, or Delete; preventDefault() if it was used
//   sheet:undo    detail {}                             u
//
// The page puts what can be done with the selection into an element with class "actions" beside it; there,
// [data-chosen] shows how many are selected, and buttons with [data-needs-chosen] are off while none is.
//
// Keys: arrows move, with Shift they select on the way; Space selects or not; a all, Escape none; Enter opens; Home, End.
// Mouse: a click selects or not, Shift-click up to there, dragging a box adds what it touches (with Alt it takes out).
"use strict";
Lookalike.sheet = (root) => {
  if (root.sheet) return root.sheet;
  const categories = JSON.parse(root.dataset.categories || "[]");
  let anchor = null;

  const tiles = () => [...root.querySelectorAll(':scope > [role="option"]')];
  const idOf = (tile) => Number(tile.dataset.id);
  const isOn = (tile) => tile.getAttribute("aria-selected") === "true";
  const turn = (tile, on) => tile.setAttribute("aria-selected", String(on));
  const byIds = (ids) => {
    const wanted = new Set(ids.map(Number));
    return tiles().filter((tile) => wanted.has(idOf(tile)));
  };
  const fire = (name, detail) => root.dispatchEvent(new CustomEvent(`sheet:${name}`, {bubbles: true, cancelable: true, detail}));

  function changed() {
    const number = sheet.chosen.length;
    for (const bar of document.querySelectorAll(".actions")) {
      for (const place of bar.querySelectorAll("[data-chosen]")) place.textContent = number ? `${number} selected` : "None selected";
      for (const button of bar.querySelectorAll("[data-needs-chosen]")) button.disabled = !number;
    }
    fire("change", {ids: sheet.chosen});
  }

  function focus(tile) {
    if (!tile) return;
    for (const other of root.querySelectorAll('[role="option"][tabindex="0"]')) other.tabIndex = -1;
    tile.tabIndex = 0;
    tile.focus({preventScroll: true});
    tile.scrollIntoView({block: "nearest"});
  }

  function upTo(tile, on) {
    const all = tiles();
    const [from, to] = [all.indexOf(anchor ?? tile), all.indexOf(tile)].sort((a, b) => a - b);
    for (const one of all.slice(Math.max(from, 0), to + 1)) turn(one, on);
  }

  function columns(all) {
    const top = all[0]?.offsetTop;
    const next = all.findIndex((tile) => tile.offsetTop !== top);
    return next < 0 ? all.length : next;
  }

  const sheet = {
    get ids() { return tiles().map(idOf); },
    get chosen() { return tiles().filter(isOn).map(idOf); },
    choose(ids) {
      const wanted = new Set(byIds(ids));
      for (const tile of tiles()) turn(tile, wanted.has(tile));
      changed();
    },
    add(ids) {
      for (const tile of byIds(ids)) turn(tile, true);
      changed();
    },
    clear() { sheet.choose([]); },
    press,
    fade(ids, on = true) { for (const tile of byIds(ids)) tile.classList.toggle("leaving", on); },
    remove(ids) {
      const all = tiles();
      const gone = new Set(byIds(ids));
      const at = all.indexOf(document.activeElement);
      const next = at < 0 ? null : all.slice(at).find((tile) => !gone.has(tile)) ?? all.slice(0, at).reverse().find((tile) => !gone.has(tile));
      for (const tile of gone) tile.remove();
      if (gone.has(anchor)) anchor = null;
      if (at >= 0) focus(next);
      else rove();
      changed();
    },
    set(html) {
      root.innerHTML = html; // our own server's template, which escapes every name
      anchor = null;
      rove();
      watchMore();
      changed();
    },
  };

  // One tile can be reached by Tab; arrows do the rest.
  function rove() {
    if (!root.querySelector('[role="option"][tabindex="0"]')) {
      const first = root.querySelector('[role="option"]');
      if (first) first.tabIndex = 0;
    }
  }

  function watchMore() {
    const more = root.querySelector(":scope > .more");
    if (!more) return;
    const observer = new IntersectionObserver(async (seen) => {
      if (!seen.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      const answer = await fetch(more.href, {headers: {Accept: "text/html", "X-Fragment": "1"}}).catch(() => null);
      if (!answer || !answer.ok || answer.redirected) return; // the link is still there
      const part = document.createElement("template");
      part.innerHTML = await answer.text(); // our own server's template, which escapes every name
      more.replaceWith(part.content);
      rove();
      watchMore();
    }, {rootMargin: "800px"});
    observer.observe(more);
  }

  root.addEventListener("click", (event) => {
    const tile = event.target.closest('[role="option"]');
    if (!tile || dragged) return;
    if (event.shiftKey) upTo(tile, true);
    else turn(tile, !isOn(tile));
    anchor = tile;
    focus(tile);
    changed();
  });
  root.addEventListener("dblclick", (event) => {
    const tile = event.target.closest('[role="option"]');
    if (tile) location.href = tile.dataset.href;
  });
  root.addEventListener("focusin", (event) => {
    if (event.target.getAttribute("role") === "option") anchor ??= event.target;
  });

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const all = tiles();
    const here = document.activeElement;
    const at = all.indexOf(here);
    const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(all), ArrowDown: columns(all), Home: -at, End: all.length - 1 - at};
    const {key} = event;
    if (key in steps) {
      const next = all[Math.min(Math.max(at + steps[key], 0), all.length - 1)];
      if (event.shiftKey && next) {
        anchor ??= here;
        upTo(next, true);
        changed();
      } else anchor = next;
      focus(next);
    } else if (key === " " && at >= 0) {
      turn(here, !isOn(here));
      anchor = here;
      changed();
    } else if (key === "a") {
      all.forEach((tile) => turn(tile, true));
      changed();
    } else if (key === "Escape") {
      if (!sheet.chosen.length) return;
      sheet.clear();
    } else if (key === "Enter" && at >= 0) location.href = here.dataset.href;
    else if (key === "u") fire("undo", {});
    else if (/^[1-9]$/.test(key)) {
      const ids = sheet.chosen.length || at < 0 ? sheet.chosen : [idOf(here)];
      if ((ids.length || root.dataset.own) && categories[key - 1] !== undefined) fire("digit", {ids, digit: Number(key), category: categories[key - 1]});
    } else if (key.length === 1 || key === "Delete") {
      if (fire("key", {ids: sheet.chosen, key})) return;
    } else return;
    event.preventDefault();
  }
  root.addEventListener("keydown", press);

  // A box, drawn with a mouse or a pen; a finger scrolls.
  let start = null;
  let box = null;
  let dragged = false;
  root.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button || event.pointerType === "touch" || event.target.closest("a, button, input")) return;
    const frame = root.getBoundingClientRect();
    start = {x: event.clientX - frame.left, y: event.clientY - frame.top, before: new Set(tiles().filter(isOn)), out: event.altKey};
  });
  addEventListener("pointermove", (event) => {
    if (!start) return;
    const frame = root.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    if (!box) {
      if (Math.hypot(x - start.x, y - start.y) < 8) return;
      box = root.appendChild(document.createElement("div"));
      box.className = "box";
      root.classList.add("boxing");
      dragged = true;
    }
    const [left, top, right, bottom] = [Math.min(x, start.x), Math.min(y, start.y), Math.max(x, start.x), Math.max(y, start.y)];
    Object.assign(box.style, {left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px`});
    for (const tile of tiles()) {
      const touched = tile.offsetLeft < right && tile.offsetLeft + tile.offsetWidth > left && tile.offsetTop < bottom && tile.offsetTop + tile.offsetHeight > top;
      turn(tile, touched ? !start.out : start.before.has(tile));
    }
    if (event.clientY > innerHeight - 40) scrollBy(0, 20);
    else if (event.clientY < 100) scrollBy(0, -20);
  });
  addEventListener("pointerup", () => {
    if (box) {
      box.remove();
      root.classList.remove("boxing");
      changed();
    }
    start = box = null;
  });

  root.sheet = sheet;
  rove();
  watchMore();
  changed();
  return sheet;
};
addEventListener("DOMContentLoaded", () => document.querySelectorAll('.sheet[role="listbox"]').forEach(Lookalike.sheet));
