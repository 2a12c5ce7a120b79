// Times in the viewer's zone, and whether the page is live. Without this script everything stays readable: times in UTC, reload for news.
"use strict";

const FIELDS = { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" };
const FORMAT = new Intl.DateTimeFormat(undefined, FIELDS);

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([title])")) {
    time.title = time.textContent;
    time.textContent = FORMAT.format(new Date(time.dateTime));
  }
}

function say(id, words, state) {
  const place = document.getElementById(id);
  if (place === null) return;
  place.textContent = words;
  if (state) place.className = state;
}

localise(document);
say("zone", `times are ${Intl.DateTimeFormat().resolvedOptions().timeZone}`);
document.body.addEventListener("htmx:afterSettle", () => localise(document));
document.body.addEventListener("htmx:sseOpen", () => say("link-state", "Live", "is-live"));
document.body.addEventListener("htmx:sseError", () => say("link-state", "Not connected, trying again", "is-lost"));
