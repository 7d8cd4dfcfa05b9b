"use strict";
// Answers the reader: the theme, values under the pointer, the order of the Monoliths, the table of decisions. Text of
// the data becomes text of the document (textContent) and nothing else.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const by = (id) => document.getElementById(id);
  const data = JSON.parse(by("data").textContent);
  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  root.classList.add("ready");

  // The theme of the system until a reader chooses.
  const theme = by("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`);
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  name();

  // Plots
  const tip = by("tip");
  const digits = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
  const value = (number) => (number === null || number === undefined ? "–" : digits.format(number));
  const clock = (seconds) => {
    if (seconds < 60) return `${digits.format(seconds)} s`;
    const whole = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
    const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
    return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
  };
  const nearest = (at, time) => {
    let low = 0, high = at.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (at[middle] < time) low = middle + 1; else high = middle;
    }
    return low > 0 && time - at[low - 1] < at[low] - time ? low - 1 : low;
  };
  const span = data.to - data.from || 1;
  const plots = all(".plot").map((element) => {
    const side = Number(element.dataset.side ?? 0);
    const kind = element.dataset.plot;
    return { element, side, kind, lines: all(".lines use", element), id: element.closest("li")?.dataset.id };
  });
  const cells = new Map(all("#cells li").map((cell) => [cell.dataset.id, cell]));
  for (const side of data.sides) side.which = new Map(side.monoliths.map((monolith, at) => [monolith.id, at]));
  let lit = [];

  const clear = () => {
    for (const undo of lit) undo();
    lit = [];
    tip.hidden = true;
  };
  const add = (plot, kind, left, top, accent) => {
    const mark = make("i", undefined, `${kind} ${accent ?? ""}`);
    mark.style.left = `${left * 100}%`;
    if (top !== undefined) mark.style.top = `${top * 100}%`;
    plot.element.append(mark);
    lit.push(() => mark.remove());
  };
  // Draws one line in front of the others, wherever it is.
  const light = (id) => {
    for (const plot of plots.filter((plot) => plot.kind === "load")) {
      const at = data.sides[plot.side].which.get(id);
      if (at === undefined) continue;
      plot.element.classList.add("lit");
      plot.lines[at].classList.add("on");
      plot.lines[at].parentNode.append(plot.lines[at]);
      lit.push(() => {
        plot.element.classList.remove("lit");
        plot.lines[at].classList.remove("on");
      });
    }
    const cell = cells.get(id);
    cell?.classList.add("on");
    lit.push(() => cell?.classList.remove("on"));
  };
  // Shows the values of a moment: of one Monolith, or how uneven the load was.
  const show = (plot, time, id, place) => {
    clear();
    const scale = plot.kind === "uneven" ? data.uneven : data.load;
    const down = (number) => 1 - Math.min(1, Math.max(0, (number - scale[0]) / (scale[1] - scale[0])));
    const lines = data.sides.map((side) => {
      const moment = nearest(side.at, time);
      const values = plot.kind === "uneven" ? side.uneven : side.monoliths[side.which.get(id)]?.values;
      return { side, at: side.at[moment], value: values?.[moment] };
    });
    const own = plot.kind === "load" ? [lines[plot.side]] : lines;
    add(plot, "cursor", (own[0].at - data.from) / span);
    for (const { side, at, value } of own) {
      if (value !== null && value !== undefined) add(plot, "spot", (at - data.from) / span, down(value), side.accent);
    }
    if (id !== undefined) light(id);
    const region = data.sides.map((side) => side.monoliths[side.which.get(id)]?.region).find(Boolean);
    const head = make("p", clock(own[0].at));
    if (id !== undefined) head.append(make("b", region ? `${id} · ${region}` : id));
    tip.replaceChildren(head, ...lines.map(({ side, value: number }) => {
      const line = make("p");
      line.append(make("span", side.policy, `who ${side.accent}`), make("b", value(number)));
      return line;
    }));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = place.x + 16 + box.width > innerWidth ? place.x - 16 - box.width : place.x + 16;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, Math.min(place.y + 16, innerHeight - box.height - 8))}px`;
  };
  const closest = (side, moment, wanted) => {
    let best, least = Infinity;
    for (const monolith of side.monoliths) {
      const number = monolith.values[moment];
      if (number === null || number === undefined) continue;
      const far = Math.abs(number - wanted);
      if (far < least) [best, least] = [monolith.id, far];
    }
    return best;
  };
  for (const plot of plots) {
    const side = data.sides[plot.side];
    let moment, id;
    const point = (event) => {
      const box = plot.element.getBoundingClientRect();
      const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const time = data.from + part * span;
      moment = nearest(side.at, time);
      id = plot.id;
      if (plot.kind === "load") {
        const [low, high] = data.load;
        id = closest(side, moment, low + (1 - (event.clientY - box.top) / box.height) * (high - low));
      }
      show(plot, time, id, { x: event.clientX, y: event.clientY });
    };
    plot.element.addEventListener("pointermove", point);
    plot.element.addEventListener("pointerdown", point);
    plot.element.addEventListener("pointerleave", clear);
    if (plot.kind === "cell") continue;
    const keyed = () => {
      moment ??= side.at.length - 1;
      if (plot.kind === "load") id ??= side.monoliths[0].id;
      const box = plot.element.getBoundingClientRect();
      const left = box.left + ((side.at[moment] - data.from) / span) * box.width;
      show(plot, side.at[moment], id, { x: left, y: box.top + 8 });
    };
    plot.element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], line = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (event.key === "Escape") return clear();
      if (step === undefined && (line === undefined || plot.kind !== "load")) return;
      event.preventDefault();
      moment ??= side.at.length - 1;
      if (step) moment = Math.min(side.at.length - 1, Math.max(0, moment + step * (event.shiftKey ? 10 : 1)));
      if (line) {
        const at = (side.which.get(id) ?? (line > 0 ? -1 : 0)) + line;
        id = side.monoliths[(at + side.monoliths.length) % side.monoliths.length].id;
      }
      keyed();
    });
    plot.element.addEventListener("focus", () => plot.element.matches(":focus-visible") && keyed());
    plot.element.addEventListener("blur", clear);
  }
  addEventListener("scroll", clear, { passive: true });

  const order = by("order");
  if (order) {
    order.closest(".controls").hidden = false;
    order.addEventListener("change", () => {
      const kind = order.value, list = by("cells"), number = (cell, kind) => Number(cell.dataset[kind]);
      const sorted = [...cells.values()].sort((a, b) =>
        (kind === "region" ? a.dataset.region.localeCompare(b.dataset.region) : 0) ||
        (kind === "peak" || kind === "change" ? number(b, kind) - number(a, kind) : 0) ||
        number(a, "name") - number(b, "name"));
      list.append(...sorted);
    });
  }

  // Decisions
  const table = by("rows");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (cell) => (cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value));
  const rows = [...body.rows].map((row, at) => {
    const keys = [...row.cells].map(key);
    const text = (kind) => row.querySelector(kind)?.textContent ?? "";
    return {
      row, at, keys, words: row.textContent.toLowerCase(), hook: keys[2], changed: row.className === "changed",
      from: text(".from"), to: text(".to"),
    };
  });
  const form = by("filter"), find = by("find"), hook = by("hook"), changed = by("changed"), chip = by("flow");
  let flow = null;
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const one of rows) {
      const fits = words.every((word) => one.words.includes(word)) && (!hook.value || one.hook === hook.value) &&
        (!changed?.checked || one.changed) &&
        (!flow || (one.hook === flow.hook && one.from === flow.from && one.to === flow.to));
      one.row.hidden = !fits;
      shown += fits;
    }
    by("none").hidden = shown > 0;
    by("count").textContent = shown === rows.length ? `${digits.format(shown)} decisions`
      : `${digits.format(shown)} of ${digits.format(rows.length)} decisions`;
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  chip.addEventListener("click", () => {
    flow = null;
    chip.hidden = true;
    find.focus();
    filter();
  });
  for (const choice of all("[data-hook]")) {
    choice.addEventListener("click", () => {
      flow = { ...choice.dataset };
      chip.textContent = `${flow.hook}: ${flow.from} → ${flow.to}`;
      chip.setAttribute("aria-label", `Stop showing only ${chip.textContent}`);
      chip.hidden = false;
      filter();
      by("decisions").scrollIntoView();
    });
  }
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  heads.forEach((head, at) => {
    const button = make("button", head.textContent);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort((a, b) => {
        const [x, y] = [a.keys[at], b.keys[at]];
        const order = typeof x === "number" ? x - y : compare(x, y);
        return (down ? -order : order) || a.at - b.at;
      });
      body.append(...rows.map((one) => one.row));
    });
  });
  filter();
})();
