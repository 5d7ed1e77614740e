// Keeps the page fresh: asks for it again and again, and changes only what differs, so that what is open stays
// open, what is selected stays selected, and nothing jumps. The server alone knows what matches the filter.
"use strict";

(() => {
  const INTERVAL = 2000;
  const TIMEOUT = 10000;
  const TYPING = 120;
  const ORDER = 10000;
  const LISTS = [".trouble", ".trouble > .rows", ".busy > .rows", ".idle tbody"];

  const form = document.querySelector("form");
  const input = form.elements.filter;
  const status = document.getElementById("status");
  const pause = document.getElementById("pause");
  const live = document.getElementById("live");

  let timer = 0;
  let underWay = null;
  let isPaused = false;
  let answeredAt = new Date();
  let orderedAt = performance.now();

  const url = () => (input.value ? "./?" + new URLSearchParams({ filter: input.value }) : "./");

  function say(text, isStale) {
    if (status.textContent !== text) status.textContent = text;
    document.body.classList.toggle("stale", isStale);
  }

  function schedule(delay) {
    clearTimeout(timer);
    if (!isPaused && !document.hidden) timer = setTimeout(refresh, delay);
  }

  async function refresh() {
    clearTimeout(timer);
    underWay?.abort();
    const mine = (underWay = new AbortController());
    const late = setTimeout(() => mine.abort(), TIMEOUT);
    try {
      const answer = await fetch(url(), { signal: mine.signal, cache: "no-store" });
      if (!answer.ok) throw new Error("status " + answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (mine === underWay) show(fresh);
    } catch (error) {
      if (mine === underWay) say("No answer since " + answeredAt.toLocaleTimeString() + ". Trying again.", true);
    } finally {
      clearTimeout(late);
      if (mine === underWay) schedule(INTERVAL);
    }
  }

  function show(fresh) {
    const content = fresh.getElementById("live");
    if (!content) throw new Error("not this page");
    if (script(fresh) !== script(document)) return location.reload();
    answeredAt = new Date();
    document.title = fresh.title;
    keepOrder(content);
    morph(live, content);
    say(isPaused ? "Paused" : "Live", false);
  }

  const script = (page) => page.querySelector("script")?.getAttribute("src");

  // Sorts the lists of `content` as they are shown, for at most ten seconds. New listeners come last. A listener
  // whose details are open keeps its place for longer.
  function keepOrder(content) {
    const isDue = performance.now() - orderedAt >= ORDER;
    if (isDue) orderedAt = performance.now();
    for (const selector of LISTS) {
      const [old, fresh] = [live, content].map((page) => page.querySelector(selector));
      if (!old || !fresh) continue;
      const [shown, next] = [old, fresh].map((list) => [...list.children].filter((child) => keyOf(child) !== undefined));
      if (next.length > 0) sortAs(shown, next, fresh, isDue);
    }
  }

  function sortAs(shown, next, list, isDue) {
    const left = new Map(next.map((child) => [keyOf(child), child]));
    const stays = shown.filter((child) => left.has(keyOf(child)));
    const isOpen = (child) => child.matches("[open]") || child.querySelector("[open]");
    const places = stays.map((child) => {
      if (isDue && !isOpen(child)) return undefined;
      const fresh = left.get(keyOf(child));
      left.delete(keyOf(child));
      return fresh;
    });
    const rest = [...left.values()];
    const after = next.at(-1).nextSibling;
    for (let at = 0; at < next.length; at++) list.insertBefore(places[at] ?? rest.shift(), after);
  }

  // Makes `old`, an element or text, equal to `fresh` with as few changes as it takes.
  function morph(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) {
      // Whether details are open is the reader's choice.
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    morphChildren(old, fresh);
  }

  const keyOf = (node) => node.dataset?.key;
  const isAlike = (a, b) => a.nodeName === b.nodeName && a.className?.baseVal === b.className?.baseVal;

  function morphChildren(old, fresh) {
    const wanted = new Set([...fresh.children].map(keyOf));
    const kept = new Map();
    for (const child of [...old.children]) {
      const key = keyOf(child);
      if (key === undefined) continue;
      if (wanted.has(key)) kept.set(key, child);
      else child.remove();
    }
    let at = old.firstChild;
    for (const next of [...fresh.childNodes]) {
      const key = keyOf(next);
      const candidate = key === undefined ? at : kept.get(key);
      const fits = candidate && isAlike(candidate, next) && keyOf(candidate) === key;
      if (!fits) {
        old.insertBefore(next, at);
      } else {
        if (candidate === at) at = at.nextSibling;
        else old.insertBefore(candidate, at);
        morph(candidate, next);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  input.addEventListener("input", () => {
    history.replaceState(null, "", url());
    orderedAt = -ORDER;
    clearTimeout(timer);
    timer = setTimeout(refresh, TYPING);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    refresh();
  });
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? "Resume" : "Pause";
    if (isPaused) {
      underWay?.abort();
      underWay = null;
      clearTimeout(timer);
      say("Paused", false);
    } else {
      refresh();
    }
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
    } else if (!isPaused) {
      refresh();
    }
  });

  pause.hidden = false;
  say("Live", false);
  schedule(INTERVAL);
})();
