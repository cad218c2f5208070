// Parts of a page that change by themselves, messages, and requests to our own server. See layout.html.
//
//   Lookalike.say("3 keyframes labelled")           a message at the foot of the page, read out by screen readers; it goes
//                                                   after a while, but not while the pointer or the focus is on it
//   Lookalike.complain("The server …")              one that stays until it is dismissed or another one comes
//   await Lookalike.post(address, {any: "JSON"})    POST with the CSRF token; the answer's JSON. Throws an Error with the
//                                                   server's sentence, which is also said
//   await Lookalike.get(address)                    the same for GET
"use strict";
window.Lookalike = (() => {
  const csrf = document.querySelector('meta[name="csrf"]').content;
  const box = document.getElementById("say");
  let timer = 0;

  function say(text, stays = false) {
    const line = document.getElementById("said").content.firstElementChild.cloneNode(true);
    line.querySelector("span").textContent = text;
    line.classList.toggle("stays", stays);
    shown().forEach((old) => old.remove());
    box.append(line);
    wait();
  }
  const complain = (text) => say(text, true);
  const shown = () => [...box.querySelectorAll("p")];

  // A message goes by itself only when nobody is about to read or dismiss it.
  function wait() {
    clearTimeout(timer);
    if (box.querySelector(".stays") || box.matches(":hover, :focus-within")) return;
    timer = setTimeout(() => shown().forEach((line) => line.remove()), 6000);
  }
  for (const event of ["pointerenter", "pointerleave", "focusin"]) box.addEventListener(event, wait);
  box.addEventListener("focusout", () => setTimeout(wait)); // when the focus has arrived where it goes
  box.addEventListener("click", ({target}) => target.closest("button")?.closest("p").remove());

  async function ask(address, options) {
    let answer;
    try {
      answer = await fetch(address, {...options, headers: {Accept: "application/json", ...options.headers}});
    } catch {
      const sentence = "The server does not answer; is it running?";
      complain(sentence);
      throw new Error(sentence);
    }
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      const said = body.error?.message || `The server answered ${answer.status}.`;
      const sentence = answer.status === 401 ? "You are signed out; load the page anew." : said[0].toUpperCase() + said.slice(1);
      complain(sentence);
      throw new Error(sentence);
    }
    return body;
  }

  const get = (address) => ask(address, {});
  const post = (address, body) =>
    ask(address, {method: "POST", headers: {"Content-Type": "application/json", "X-CSRF-Token": csrf}, body: JSON.stringify(body ?? {})});

  // A fragment takes the place of what was there, unless it is the same or the person is in the middle of it.
  function keepFresh(part) {
    let last = "";
    setInterval(async () => {
      if (document.hidden || part.contains(document.activeElement) || part.querySelector("dialog[open]")) return;
      const answer = await fetch(part.dataset.refresh, {headers: {Accept: "text/html"}}).catch(() => null);
      if (!answer || !answer.ok || answer.redirected) return;
      const text = await answer.text();
      if (text === last) return;
      last = text;
      const open = [...part.querySelectorAll("details[open][id]")].map((details) => details.id);
      part.innerHTML = text; // our own server's template, which escapes every name
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    }, 1000 * Number(part.dataset.every || 3));
  }

  addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-refresh]").forEach(keepFresh);
    wait();
    document.addEventListener("submit", (event) => {
      const question = event.target.dataset.confirm;
      if (question && !confirm(question)) event.preventDefault();
    });
  });
  return {say, complain, get, post};
})();
