// Parts of a page that change by themselves, messages, and requests to our own server. See layout.html.
//
//   Lookalike.say("3 keyframes labelled")           a message at the foot of the page, read out by screen readers
//   await Lookalike.post(address, {any: "JSON"})    POST with the CSRF token; the answer's JSON. Throws an Error with the
//                                                   server's sentence, which is also said
//   await Lookalike.get(address)                    the same for GET
"use strict";
window.Lookalike = (() => {
  const csrf = document.querySelector('meta[name="csrf"]').content;
  let timer = 0;

  function say(text) {
    const box = document.getElementById("say");
    const line = document.createElement("p");
    line.textContent = text;
    box.replaceChildren(line);
    clearTimeout(timer);
    timer = setTimeout(() => box.replaceChildren(), 6000);
  }

  async function ask(address, options) {
    let answer;
    try {
      answer = await fetch(address, {...options, headers: {Accept: "application/json", ...options.headers}});
    } catch {
      say("The server does not answer; is it running?");
      throw new Error("no answer");
    }
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      const sentence = body.error?.message || `The server answered ${answer.status}.`;
      say(answer.status === 401 ? "You are signed out; load the page anew." : sentence);
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
    const box = document.getElementById("say");
    if (box.childElementCount) timer = setTimeout(() => box.replaceChildren(), 6000);
    document.addEventListener("submit", (event) => {
      const question = event.target.dataset.confirm;
      if (question && !confirm(question)) event.preventDefault();
    });
  });
  return {say, get, post};
})();
