"""Script that keeps a live page up to date.

Nothing changes under the hand of a reader: while a chart or a table has the focus, or the page is paused, a new version
waits.
"""

LIVE_SCRIPT = """
(() => {
  const said = document.getElementById("live"), bar = said.parentNode, pause = document.getElementById("pause");
  let shown = said.dataset.version, newest = shown, at = said.dataset.at, lost = false, loading = false;
  const parts = ["header", "nav", "main"];

  const spell = seconds => seconds < 120 ? seconds + " s" : seconds < 7200 ? Math.round(seconds / 60) + " min"
    : seconds < 172800 ? Math.round(seconds / 3600) + " h" : Math.round(seconds / 86400) + " days";
  const tell = () => {
    const ago = spell(Math.max(0, Math.round((Date.now() - Date.parse(at)) / 1000)));
    const text = lost ? "Not connected. Is the command that shows this page still running?"
      : (newest !== shown ? "There are newer figures. " : "Live. ") + "Figures of " + ago + " ago.";
    if (said.textContent !== text) said.textContent = text;
    bar.classList.toggle("lost", lost);
    for (const one of document.querySelectorAll("time[data-way]")) {
      const apart = (Date.now() - Date.parse(one.dateTime)) / 1000 * (one.dataset.way === "until" ? -1 : 1);
      const way = one.dataset.way, span = spell(Math.max(0, Math.round(apart)));
      const words = way === "ago" ? span + " ago" : way === "for" ? "for " + span : apart > 0 ? "in " + span : "now";
      if (one.textContent !== words) one.textContent = words;
    }
  };
  const busy = () => pause.getAttribute("aria-pressed") === "true"
    || document.querySelector("main").contains(document.activeElement);

  async function update() {
    if (loading || newest === shown || busy()) return;
    loading = true;
    try {
      const reply = await fetch("./", {cache: "no-store"});
      if (!reply.ok) throw new Error(reply.status);
      const made = new DOMParser().parseFromString(await reply.text(), "text/html");
      const open = [...document.querySelectorAll("main details")].map(one => one.open);
      for (const part of parts) document.querySelector(part).replaceWith(made.querySelector(part));
      document.querySelectorAll("main details").forEach((one, k) => { one.open = Boolean(open[k]); });
      document.title = made.title;
      shown = made.getElementById("live").dataset.version;
      at = made.getElementById("live").dataset.at;
      document.dispatchEvent(new Event("bract-changed"));
    } catch (error) {
      lost = true;
    } finally {
      loading = false;
      tell();
    }
  }

  const source = new EventSource("events");
  source.addEventListener("message", event => { newest = event.data; lost = false; tell(); update(); });
  source.addEventListener("error", () => { lost = true; tell(); });
  source.addEventListener("open", () => { lost = false; tell(); });
  pause.addEventListener("click", () => {
    const on = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", on);
    pause.textContent = on ? "Go on" : "Pause";
    update();
  });
  document.addEventListener("focusout", () => setTimeout(update));
  setInterval(tell, 1000);
  tell();
})();
"""
