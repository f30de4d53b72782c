"use strict";

// Captions and names reach the page through textContent alone: they are text, whatever they look like.
function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function startTheme() {
  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const root = document.documentElement;
  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = `theme: ${theme}`;
  };
  let theme = "auto";
  try { theme = localStorage.getItem("lad_pl-theme") ?? "auto"; } catch { /* a page from a file may have no storage */ }
  show(themes.includes(theme) ? theme : "auto");
  button.addEventListener("click", () => {
    const now = root.dataset.theme ?? "auto";
    const next = themes[(themes.indexOf(now) + 1) % themes.length];
    show(next);
    try { localStorage.setItem("lad_pl-theme", next); } catch { /* as above */ }
  });
}

function startGallery(data) {
  const at = (id) => document.getElementById(id);
  const [method, outcome, target, chosen, words] = ["method", "outcome", "target", "chosen", "words"].map(at);
  const [cards, count, none, more, dialog] = ["cards", "count", "none", "more", "detail"].map(at);
  const STEP = 24;
  let matching = [];
  let shown = 0;
  let open = -1;

  const isCorrect = (prompt, number) => prompt.choices[number] === prompt.target;
  const compared = () => Number(method.value);
  const name = () => data.methods[compared()];
  const kind = (prompt) => `${isCorrect(prompt, 0) ? "correct" : "wrong"}-${isCorrect(prompt, compared()) ? "correct" : "wrong"}`;
  const percent = (share) => share > 0 && share < 10 ? "<1" : (share / 10).toFixed(0);

  function fillOptions() {
    data.methods.forEach((label, number) => {
      if (number) method.append(element("option", { text: label, value: number }));
    });
    if (data.methods.length === 1) method.append(element("option", { text: data.methods[0], value: 0 }));
    method.value = data.methods.indexOf(data.headline);
    for (const select of [target, chosen]) {
      select.append(element("option", { text: "any position", value: "" }));
      for (let place = 0; place < data.candidates; place++)
        select.append(element("option", { text: `position ${place + 1}`, value: place }));
    }
  }

  function fillOutcomes() {
    const kept = outcome.value;
    const counts = {};
    for (const prompt of data.prompts) counts[kind(prompt)] = (counts[kind(prompt)] ?? 0) + 1;
    const base = data.methods[0];
    const choices = [
      ["", "all", data.prompts.length],
      ["wrong-correct", `${base} wrong, ${name()} correct`],
      ["correct-wrong", `${base} correct, ${name()} wrong`],
      ["wrong-wrong", "both wrong"],
      ["correct-correct", "both correct"],
    ];
    outcome.replaceChildren(...choices.map(([value, text, all]) =>
      element("option", { value, text: `${text} (${all ?? counts[value] ?? 0})` })));
    outcome.value = kept;
    if (outcome.selectedIndex < 0) outcome.value = "";
    at("compared").textContent = name();
  }

  function filter() {
    const text = words.value.trim().toLocaleLowerCase();
    matching = data.prompts.filter((prompt) =>
      (!outcome.value || kind(prompt) === outcome.value)
      && (target.value === "" || prompt.target === Number(target.value))
      && (chosen.value === "" || prompt.choices[0] === Number(chosen.value))
      && (!text || data.samples[prompt.sample].caption.toLocaleLowerCase().includes(text)));
    shown = 0;
    cards.replaceChildren();
    showMore();
    none.hidden = matching.length > 0;
    count.value = `${matching.length} of ${data.prompts.length} prompts`;
  }

  function showMore() {
    const upTo = Math.min(shown + STEP, matching.length);
    for (; shown < upTo; shown++) cards.append(card(matching[shown], shown));
    more.hidden = shown >= matching.length;
    more.textContent = `Show more (${matching.length - shown})`;
  }

  const where = (prompt) =>
    `sample ${data.samples[prompt.sample].id}, order ${prompt.order + 1} of ${data.orders}, correct image at ${prompt.target + 1}`;

  function card(prompt, place) {
    const made = element("li", { className: "card", tabindex: place ? -1 : 0, "data-place": place },
      element("h3", { text: data.samples[prompt.sample].caption, dir: "auto" }),
      element("p", { className: "which", text: where(prompt) }),
      pictures(prompt));
    const unread = data.methods.filter((_, number) => prompt.choices[number] < 0);
    if (unread.length) made.append(element("p", { className: "unread", text: `no readable answer: ${unread.join(", ")}` }));
    return made;
  }

  function pictures(prompt, inFull = false) {
    const list = element("ol", { className: "tiles-of-prompt" });
    const halved = inFull && data.candidates > 6;
    list.style.setProperty("--columns", halved ? Math.ceil(data.candidates / 2) : data.candidates);
    prompt.permutation.forEach((original, place) => list.append(tile(prompt, original, place, inFull)));
    return list;
  }

  function tile(prompt, original, place, inFull) {
    const number = data.samples[prompt.sample].images[original];
    const source = data.pictures[number];
    const label = `image ${place + 1}: ${data.names[number]}`;
    const picture = element("div", { className: "picture", title: data.names[number] },
      source ? element("img", { src: source, alt: label })
        : element("span", { className: "absent", text: data.names[number], dir: "auto" }),
      element("span", { className: "number", text: place + 1 }));
    const correct = prompt.target === place;
    if (correct) picture.append(element("span", { className: "truth", text: "correct" }));
    return element("li", { className: correct ? "tile target" : "tile" }, picture, bars(prompt, place),
      element("div", { className: "chips" }, ...chips(prompt, place, inFull)));
  }

  // Who chose the image: by name the two that are compared, and in full all others too.
  function chips(prompt, place, inFull) {
    const chose = [...data.methods.keys()].filter((index) => prompt.choices[index] === place);
    const named = chose.filter((index) => inFull || index === 0 || index === compared());
    const others = chose.filter((index) => !named.includes(index)).map((index) => data.methods[index]);
    const role = (index) => index === 0 ? " vanilla" : index === compared() ? " corrected" : "";
    const made = named.map((index) => element("span", { className: `chip${role(index)}`, text: data.methods[index] }));
    const more = `${named.length ? "+" : ""}${others.length} ${others.length > 1 ? "others" : "other"}`;
    if (others.length) made.push(element("span", { className: "chip", text: more, title: others.join(", ") }));
    return made;
  }

  function bars(prompt, place) {
    const rows = [[data.methods[0], "vanilla", prompt.shares[0]]];
    if (compared()) rows.push([name(), "corrected", prompt.shares[compared()]]);
    rows.push(["attention", "attention", prompt.attention]);
    return element("div", { className: "bars" }, ...rows.flatMap(([label, role, shares]) => {
      if (!shares) return [];
      const fill = element("div", { className: `fill ${role}` });
      fill.style.setProperty("--share", shares[place] / 1000);
      return [element("div", { className: "gauge", title: `${label}: ${percent(shares[place])} %` },
        element("div", { className: "track" }, fill),
        element("span", {}, element("span", { className: "hidden", text: `${label}, %: ` }), percent(shares[place])))];
    }));
  }

  function scores(prompt) {
    const places = [...Array(data.candidates).keys()];
    const rows = data.methods.flatMap((label, index) => prompt.shares[index] ? [[label, prompt.shares[index], prompt.choices[index]]] : []);
    rows.push(["attention", prompt.attention, -1]);
    const line = ([label, shares, choice]) => element("tr", {}, element("th", { text: label, scope: "row" }),
      ...places.map((place) => element("td", {
        text: percent(shares[place]),
        className: `${place === prompt.target ? "target" : ""} ${place === choice ? "choice" : ""}`,
      })));
    return element("div", { className: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, element("th", { text: "in %, by position", scope: "col" }),
        ...places.map((place) => element("th", { text: place + 1, scope: "col" })))),
      element("tbody", {}, ...rows.map(line))));
  }

  function openDetail(place) {
    if (place < 0 || place >= matching.length) return;
    open = place;
    const prompt = matching[place];
    at("detail-title").textContent = data.samples[prompt.sample].caption;
    at("detail-title").dir = "auto";
    at("detail-body").replaceChildren(
      element("p", { className: "which", text: `${place + 1} of ${matching.length}: ${where(prompt)}` }),
      pictures(prompt, true), scores(prompt));
    at("previous").disabled = place === 0;
    at("next").disabled = place === matching.length - 1;
    if (!dialog.open) dialog.showModal();
  }

  function focusCard(place) {
    while (place >= shown && shown < matching.length) showMore();
    const next = cards.children[place];
    if (!next) return;
    for (const other of cards.querySelectorAll(".card[tabindex='0']")) other.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  function perRow() {
    const first = cards.children[0];
    return [...cards.children].filter((other) => other.offsetTop === first.offsetTop).length || 1;
  }

  fillOptions();
  fillOutcomes();
  filter();
  method.addEventListener("change", () => { fillOutcomes(); filter(); });
  for (const select of [outcome, target, chosen]) select.addEventListener("change", filter);
  words.addEventListener("input", filter);
  more.addEventListener("click", () => { const from = shown; showMore(); focusCard(from); });
  at("reset").addEventListener("click", () => {
    outcome.value = target.value = chosen.value = words.value = "";
    filter();
    outcome.focus();
  });
  cards.addEventListener("click", (event) => {
    const hit = event.target.closest(".card");
    if (hit && !String(getSelection())) { focusCard(Number(hit.dataset.place)); openDetail(Number(hit.dataset.place)); }
  });
  cards.addEventListener("keydown", (event) => {
    const hit = event.target.closest(".card");
    if (!hit) return;
    const place = Number(hit.dataset.place);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow(), ArrowUp: -perRow(), Home: -place, End: shown - 1 - place };
    if (event.key === "Enter" || event.key === " ") openDetail(place);
    else if (event.key in steps) focusCard(Math.max(0, Math.min(matching.length - 1, place + steps[event.key])));
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") openDetail(open + 1);
    else if (event.key === "ArrowLeft") openDetail(open - 1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => focusCard(open));
  at("previous").addEventListener("click", () => openDetail(open - 1));
  at("next").addEventListener("click", () => openDetail(open + 1));
  at("close").addEventListener("click", () => dialog.close());
}

startTheme();
const gallery = document.getElementById("gallery-data");
if (gallery) startGallery(JSON.parse(gallery.textContent));
