"""Script that keeps a live page up to date.

Nothing changes under the hand of a reader: while a chart or a table has the focus, or the page is paused, a new version
waits.
"""

LIVE_SCRIPT = """
(() => {
  const said = document.getElementById("live"), bar = said.parentNode, pause = document.getElementById("pause");
  let shown = said.dataset.version, newest = shown, at = said.dataset.at, lost = false, loading = false;
  const parts = ["header", "nav", "main"];

  const tell = () => {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(at)) / 1000));
    const ago = seconds < 120 ? seconds + " s" : Math.round(seconds / 60) + " min";
    const text = lost ? "Not connected. Is `bract watch` still running?"
      : (newest !== shown ? "There are newer figures. " : "Live. ") + "Figures of " + ago + " ago.";
    if (said.textContent !== text) said.textContent = text;
    bar.classList.toggle("lost", lost);
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
