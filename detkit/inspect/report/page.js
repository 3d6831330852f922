"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const PAGE = 60; // cards that are shown at a time
  const root = document.documentElement;

  // Light and dark: what the system says, until the button is pressed.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // Of two detectors one is shown at a time.
  const show = (key) => {
    for (const panel of all("[data-panel]")) panel.hidden = panel.dataset.panel !== key;
    for (const button of all("[data-show]")) button.setAttribute("aria-pressed", button.dataset.show === key);
  };
  for (const button of all("[data-show]")) button.addEventListener("click", () => show(button.dataset.show));
  if (all("[data-show]").length) show(all("[data-show]")[0].dataset.show);

  // Tables: a click on a column sorts by it, a second one the other way round; what has no value stays last.
  const valueOf = (cell) => {
    const text = cell.dataset.sort ?? cell.textContent.trim();
    return text === "" || isNaN(text) ? text : Number(text);
  };
  const compare = (one, two, sign) => {
    if (one === "" || two === "") return (one === "") - (two === "");
    const bothNumbers = typeof one === "number" && typeof two === "number";
    return sign * (bothNumbers ? one - two : String(one).localeCompare(String(two), undefined, { numeric: true }));
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const body = table.tBodies[0], rows = [...body.rows];
      const isText = rows.length && typeof valueOf(rows[0].cells[column]) === "string" && column === 0;
      const before = head.getAttribute("aria-sort") || (isText ? "descending" : "ascending");
      const rising = before === "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      rows.sort((a, b) => compare(valueOf(a.cells[column]), valueOf(b.cells[column]), rising ? 1 : -1));
      body.append(...rows);
    }));
  }

  // Charts: the nearest point of a line, in the units of the axes.
  const axis = (text) => { const [low, high, ...label] = text.split(" "); return { low: +low, high: +high, label: label.join(" ") }; };
  const pointsOf = (path) => (path.points ??= (path.getAttribute("d") || "").slice(1).split("L").filter(Boolean)
    .map((pair) => pair.split(" ").map(parseFloat)));
  const round = (value) => Number(value.toPrecision(3)).toString();
  for (const svg of all(".chart svg")) {
    const cursor = svg.querySelector(".cursor"), text = cursor.querySelector("text");
    const x = axis(svg.dataset.x), y = axis(svg.dataset.y), width = +svg.dataset.width, height = +svg.dataset.height;
    const lines = all(".line", svg);
    svg.addEventListener("pointermove", (event) => {
      const mouse = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let best = null, nearest = 900; // px squared
      for (const line of lines) {
        if (line.classList.contains("dim")) continue;
        for (const [px, py] of pointsOf(line)) {
          const distance = (px - mouse.x) ** 2 + (py - mouse.y) ** 2;
          if (distance < nearest) { nearest = distance; best = { px, py, name: line.dataset.name }; }
        }
      }
      cursor.toggleAttribute("hidden", !best);
      if (!best) return;
      cursor.setAttribute("transform", `translate(${best.px} ${best.py})`);
      const vx = x.low + (best.px / width) * (x.high - x.low), vy = y.high - (best.py / height) * (y.high - y.low);
      text.textContent = `${best.name}: ${x.label} ${round(vx)}, ${y.label} ${round(vy)}`;
      text.setAttribute("text-anchor", best.px > width / 2 ? "end" : "start");
    });
    svg.addEventListener("pointerleave", () => cursor.setAttribute("hidden", ""));
  }

  // Curves: one class or all, with a dot where F1 is best.
  const dot = (chart, x, y) => {
    const svg = chart.querySelector("svg"), circle = svg.querySelector(".best");
    circle.toggleAttribute("hidden", isNaN(x) || isNaN(y));
    if (circle.hasAttribute("hidden")) return;
    circle.setAttribute("cx", x * svg.dataset.width);
    circle.setAttribute("cy", (1 - y) * svg.dataset.height);
  };
  for (const select of all(".curve-class")) {
    const panel = select.closest(".panel"), charts = all(".curves", panel);
    const choose = (name) => {
      select.value = name;
      for (const circle of all("circle.best", panel)) circle.setAttribute("hidden", "");
      for (const line of all(".curves .line", panel)) {
        line.classList.toggle("dim", name !== "" && line.dataset.name !== name);
        line.classList.toggle("chosen", line.dataset.name === name);
      }
      for (const row of all("table.best tbody tr", panel)) {
        const chosen = row.dataset.class === name;
        row.classList.toggle("chosen", chosen);
        const [threshold, f1, precision, recall] = all("td", row).map((cell) => parseFloat(cell.dataset.sort));
        if (chosen) { dot(charts[0], recall, precision); dot(charts[1], threshold, f1); }
      }
    };
    select.addEventListener("change", () => choose(select.value));
    for (const row of all("table.best tbody tr", panel)) row.addEventListener("click", () => choose(row.dataset.class));
    if (select.options.length === 2) choose(select.options[1].value);
  }

  // Pictures: filter, order, and hide the detections of this detector below a score, wherever they are drawn.
  for (const gallery of all(".gallery")) {
    const grid = gallery.querySelector(".cards");
    if (!grid) continue;
    const cards = all(".card", grid), pick = (name) => gallery.querySelector(name);
    const slider = pick(".by-score"), more = pick(".more");
    const boxes = all(`.store g[id^="${gallery.dataset.scenes}"] [data-score]`).map((box) => [Number(box.dataset.score), box]);
    let limit = PAGE;
    const orders = {
      order: (card) => [Number(card.dataset.order), 1], score: (card) => [card.dataset.score === "" ? "" : +card.dataset.score, -1],
      iou: (card) => [card.dataset.iou === "" ? "" : +card.dataset.iou, 1], class: (card) => [card.dataset.class, 1],
      name: (card) => [card.dataset.name, 1],
    };
    const update = () => {
      const kind = pick(".by-kind").value, name = pick(".by-class").value, threshold = Number(slider.value);
      pick("output").textContent = threshold.toFixed(2);
      for (const [score, box] of boxes) box.classList.toggle("off", score < threshold);
      const chosen = cards.filter(({ dataset }) => (!kind || dataset.kind === kind) && (!name || dataset.class === name)
        && (dataset.score === "" || Number(dataset.score) >= threshold));
      const order = orders[pick(".by-order").value];
      chosen.sort((a, b) => compare(order(a)[0], order(b)[0], order(a)[1]) || a.dataset.order - b.dataset.order);
      const shown = new Set(chosen.slice(0, limit));
      for (const card of cards) card.hidden = !shown.has(card);
      grid.append(...chosen);
      more.hidden = chosen.length <= limit;
      pick(".count").textContent = `${shown.size} of ${chosen.length} shown`;
    };
    for (const name of [".by-kind", ".by-class", ".by-order"]) {
      pick(name).addEventListener("change", () => { limit = PAGE; update(); });
    }
    slider.addEventListener("input", update);
    more.addEventListener("click", () => { limit += PAGE; update(); });
    slider.value = slider.dataset.best || 0;
    update();
  }

  // A click enlarges, arrows go on, Escape closes.
  const large = document.getElementById("large");
  let current = null;
  const enlarge = (card) => {
    current = card;
    large.querySelector(".stage").replaceChildren(...all("svg", card).map((svg) => svg.cloneNode(true)));
    large.querySelector("p").textContent = all(".title, .meta", card).map((it) => it.textContent.trim().replace(/\s+/g, " ")).join(" · ");
    if (!large.open) large.showModal();
  };
  const step = (by) => {
    const cards = all(".card", current.parentElement).filter((card) => !card.hidden);
    enlarge(cards[(cards.indexOf(current) + by + cards.length) % cards.length]);
  };
  for (const card of all(".card")) card.addEventListener("click", () => enlarge(card));
  large.querySelector(".close").addEventListener("click", () => large.close());
  large.querySelector(".previous").addEventListener("click", () => step(-1));
  large.querySelector(".next").addEventListener("click", () => step(1));
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  large.addEventListener("close", () => current && current.focus());
})();
