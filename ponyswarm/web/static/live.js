// Keeps an open page true. The server says that something changed; the page is asked for
// again, and the parts that differ take the place of the old ones. Nothing is worked out
// here, so without this file every page is whole, only still.
"use strict";
(() => {
  const body = document.body;
  if (body.dataset.topic === undefined) return;
  const badge = document.getElementById("live");
  let source = null;
  let turn = body.dataset.turn;
  let busy = false;
  let again = false;

  const say = (state, text) => {
    if (!badge) return;
    badge.dataset.state = state;
    badge.textContent = text;
  };

  // A part that differs is replaced as a whole; rows inside it that are new are marked.
  const replace = (old, fresh) => {
    const known = new Map([...old.querySelectorAll("[id]")].map((one) => [one.id, one]));
    const held = document.activeElement && old.contains(document.activeElement)
      ? document.activeElement.closest("[id]")?.id : null;
    const scroll = [old.scrollLeft, old.scrollTop];
    const node = document.importNode(fresh, true);
    const inside = [...node.querySelectorAll("[id]")];
    for (const one of inside) {
      const before = known.get(one.id);
      if (!before || !before.isEqualNode(one)) one.classList.add("fresh");
    }
    if (!inside.length) node.classList.add("fresh");
    old.replaceWith(node);
    [node.scrollLeft, node.scrollTop] = scroll;
    // Where somebody is on the page by keyboard, they stay.
    if (held) {
      const place = document.getElementById(held);
      (place?.matches("a, button") ? place : place?.querySelector("a, button"))?.focus();
    }
  };

  const clean = (node) => {
    const copy = node.cloneNode(true);
    copy.classList.remove("fresh");
    for (const one of copy.querySelectorAll(".fresh")) one.classList.remove("fresh");
    for (const one of [copy, ...copy.querySelectorAll("[class='']")])
      if (one.getAttribute("class") === "") one.removeAttribute("class");
    return copy;
  };

  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      turn = fresh.body.dataset.turn;
      for (const part of fresh.querySelectorAll("[data-live]")) {
        const old = document.getElementById(part.id);
        if (old && !clean(old).isEqualNode(part)) replace(old, part);
      }
      document.title = fresh.title;
    } catch {
      say("away", "not connected");
    } finally {
      busy = false;
      if (again) { again = false; refresh(); }
    }
  };

  const open = () => {
    source = new EventSource(`/events?topic=${body.dataset.topic}&since=${turn}`);
    source.addEventListener("open", () => say("on", "live"));
    source.addEventListener("error", () => say("away", "not connected"));
    source.addEventListener("change", refresh);
  };

  // A browser opens six connections to a host at most: a tab that nobody sees gives its own up.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { source?.close(); source = null; }
    else if (!source) open();
  });
  window.addEventListener("pagehide", () => { source?.close(); source = null; });
  window.addEventListener("pageshow", (event) => { if (event.persisted && !source) open(); });
  if (!document.hidden) open();
})();
