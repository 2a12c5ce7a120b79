// Times in the viewer's zone, buttons that copy identifiers, and whether the page is live. Without this script everything stays readable: times in UTC, reload for news.
"use strict";

const FIELDS = { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" };
const FORMAT = new Intl.DateTimeFormat(undefined, FIELDS);

const AGO = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "narrow" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function relative(moment) {
  const seconds = (moment - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, size]) => Math.abs(seconds) >= size) || ["second", 1];
  return AGO.format(Math.round(seconds / length), unit);
}

// In tables how long ago, with the exact time on hover; elsewhere the exact time.
function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([title])")) {
    const exact = FORMAT.format(new Date(time.dateTime));
    time.title = `${exact} (${time.textContent})`;
    time.textContent = time.closest("tbody") ? relative(new Date(time.dateTime)) : exact;
  }
}

function offerCopies(root) {
  if (!navigator.clipboard) return;
  for (const place of root.querySelectorAll("[data-copy]:not([data-offered])")) {
    place.dataset.offered = "1";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "copy";
    button.setAttribute("aria-label", `copy ${place.dataset.copy}`);
    button.addEventListener("click", () => navigator.clipboard.writeText(place.dataset.copy).then(() => { button.textContent = "copied"; }));
    place.append(button);
  }
}

function say(id, words, state) {
  const place = document.getElementById(id);
  if (place === null) return;
  place.textContent = words;
  if (state) place.className = state;
}

localise(document);
offerCopies(document);
say("zone", `times are ${Intl.DateTimeFormat().resolvedOptions().timeZone}`);
document.body.addEventListener("htmx:afterSettle", () => { localise(document); offerCopies(document); });
document.body.addEventListener("htmx:sseOpen", () => say("link-state", "Live", "is-live"));
document.body.addEventListener("htmx:sseError", () => say("link-state", "Not connected, trying again", "is-lost"));
