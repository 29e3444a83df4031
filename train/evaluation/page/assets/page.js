"use strict";
// Everything from data goes through textContent or an attribute of an element that this script makes: never through HTML.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const ROWS = 50;
  const FIELDS = [
    ["name", "class"], ["group", "group"], ["train", "training images"], ["test", "test images"], ["recall", "recall"],
    ["precision", "precision"], ["f1", "F1"], ["auroc", "AUROC"], ["average_precision", "AP"], ["recall_best", "recall, best weights"],
  ];
  const GROUPS = ["many", "medium", "few"];
  const charts = [];

  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const count = (value) => value.toLocaleString("en");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // ------------------------------------------------------------------ charts
  const tip = document.getElementById("tip");
  const showTip = (handler, event, item, value) => {
    if (!value) { tip.hidden = true; return; }
    tip.textContent = typeof value === "object" ? Object.values(value).join("\n") : String(value);
    tip.hidden = false;
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${window.scrollX + Math.max(4, Math.min(event.clientX + 12, right))}px`;
    tip.style.top = `${window.scrollY + event.clientY + 14}px`;
  };
  const config = () => ({
    background: color("paper"), font: "system-ui, sans-serif",
    axis: { labelColor: color("ink"), titleColor: color("ink"), gridColor: color("line"), domainColor: color("line"), tickColor: color("line"), labelFontSize: 12, titleFontSize: 13 },
    legend: { labelColor: color("ink"), titleColor: color("ink"), labelFontSize: 12, orient: "top", direction: "horizontal", columns: 3, labelLimit: 260, symbolOpacity: 1 },
    view: { stroke: color("line") },
  });
  const draw = (chart) => {
    const width = Math.max(220, Math.min(chart.element.clientWidth, chart.widest) - 90);
    const spec = { ...chart.spec(width), autosize: { type: "pad", contains: "content" }, config: config() };
    if (chart.view) chart.view.finalize();
    chart.view = new vega.View(vega.parse(vegaLite.compile(spec).spec), { renderer: chart.canvas ? "canvas" : "svg", container: chart.element, hover: true });
    chart.view.tooltip(showTip).run();
    chart.element.dataset.drawn = "yes";
  };
  const add = (element, spec, { widest = 1060, canvas = false } = {}) => {
    if (element) charts.push({ element, spec, widest, canvas, view: null });
  };
  const drawVisible = (again) => {
    for (const chart of charts) {
      if (chart.element.closest("[hidden]") || (chart.view && !again)) continue;
      draw(chart);
    }
  };

  const mean = (values) => {
    const there = values.filter((value) => value !== null);
    return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
  };
  const several = runs.length > 1;
  const sizeData = () => {
    const dots = [], lines = [];
    runs.forEach((run) => {
      const classes = run.classes;
      if (!classes) return;
      classes.name.forEach((name, k) => {
        if (classes.recall[k] === null || classes.train[k] < 1) return;
        const said = `${name}\n${count(classes.train[k])} training images (${classes.group[k]})\nrecall ${number(classes.recall[k])} % of ${classes.test[k]}`;
        dots.push({ size: classes.train[k], recall: classes.recall[k], kind: several ? run.name : classes.group[k], tip: several ? `${said}\n${run.name}` : said });
      });
      GROUPS.forEach((group) => {
        const members = [...classes.name.keys()].filter((k) => classes.group[k] === group && classes.train[k] > 0);
        const level = mean(members.map((k) => classes.recall[k]));
        if (level === null) return;
        const sizes = members.map((k) => classes.train[k]);
        const range = sizes.reduce(([low, high], size) => [Math.min(low, size), Math.max(high, size)], [Infinity, 0]);
        lines.push({ low: range[0], high: range[1], recall: level, kind: several ? run.name : group, tip: `mean of ${members.length} ${group} classes: ${number(level)} %${several ? `\n${run.name}` : ""}` });
      });
    });
    return { dots, lines };
  };
  const sizeSpec = (width) => {
    const { dots, lines } = sizeData();
    const sizes = dots.map((dot) => dot.size);
    const low = sizes.reduce((a, b) => Math.min(a, b), Infinity), high = sizes.reduce((a, b) => Math.max(a, b), 1);
    const kinds = several ? runs.map((run) => run.name) : GROUPS.filter((group) => dots.some((dot) => dot.kind === group));
    const scale = several ? { domain: kinds, scheme: "tableau10" } : { domain: kinds, range: kinds.map(color) };
    const x = { type: "quantitative", title: "training images of the class", scale: { type: "log", domain: low === high ? [low / 2, high * 2] : [low / 1.15, high * 1.15], nice: false }, axis: { format: ",d", grid: true, tickCount: 6, labelOverlap: true } };
    return {
      width, height: Math.min(380, Math.max(240, width * 0.45)),
      layer: [
        { data: { values: dots }, mark: { type: "point", filled: true, size: dots.length > 2000 ? 16 : 45, opacity: dots.length > 300 ? 0.55 : 0.8 },
          encoding: { x: { field: "size", ...x }, y: { field: "recall", type: "quantitative", title: "test recall (%)", scale: { domain: [0, 100] } }, color: { field: "kind", type: "nominal", title: null, scale }, tooltip: { field: "tip" } } },
        { data: { values: lines }, mark: { type: "rule", strokeWidth: 3, opacity: 0.8 },
          encoding: { x: { field: "low", type: "quantitative" }, x2: { field: "high" }, y: { field: "recall", type: "quantitative" }, color: { field: "kind", type: "nominal", scale }, tooltip: { field: "tip" } } },
      ],
    };
  };

  const confusionSpec = (run) => (width) => {
    const { blocks, borders, cells } = run.confusion;
    const names = run.classes.name;
    const single = blocks.every((block) => block[2] === 1);
    const told = ([first, last, members]) => (members === 1 ? names[first] : `${members} classes, ${names[first]} … ${names[last]}`);
    const values = cells.map(([row, column, images, share]) => ({
      row, row2: row + 1, column, column2: column + 1, share,
      tip: `true: ${told(blocks[row])}\npredicted: ${told(blocks[column])}\n${number(share)} %, ${count(images)} images`,
    }));
    const labelled = single && blocks.length <= 30;
    const room = width < 500 ? 80 : 130;
    const side = Math.max(150, Math.min(width - (labelled ? room - 40 : 0), 640));
    const axis = labelled
      ? { values: blocks.map((_, k) => k + 0.5), labelExpr: "names[floor(datum.value)]", labelLimit: room, grid: false, ticks: false, labelOverlap: false }
      : { labels: false, ticks: false, grid: false };
    const scale = { domain: [0, blocks.length], nice: false };
    const at = (k) => ({ k });
    return {
      width: side, height: side, params: [{ name: "names", value: blocks.map(told) }],
      layer: [
        { data: { values }, mark: { type: "rect" },
          encoding: {
            x: { field: "column", type: "quantitative", title: single ? "predicted class" : "predicted class, in blocks by size", scale, axis: { ...axis, labelAngle: -90 } }, x2: { field: "column2" },
            y: { field: "row", type: "quantitative", title: "true class", scale: { ...scale, reverse: true }, axis }, y2: { field: "row2" },
            color: { field: "share", type: "quantitative", title: "% of the true class", scale: { domain: [0, 100], range: [color("panel"), color("accent")] } },
            tooltip: { field: "tip" } } },
        { data: { values: borders.map(at) }, mark: { type: "rule", color: color("few"), strokeWidth: 1 }, encoding: { x: { field: "k", type: "quantitative" } } },
        { data: { values: borders.map(at) }, mark: { type: "rule", color: color("few"), strokeWidth: 1 }, encoding: { y: { field: "k", type: "quantitative" } } },
      ],
    };
  };

  const reliabilitySpec = (run) => (width) => {
    const values = Object.entries(run.reliability).flatMap(([kind, bins]) =>
      bins.samples.map((samples, k) => ({ kind: kind === "after" ? "after temperature scaling" : "as trained", confidence: bins.confidence[k], accuracy: bins.accuracy[k], samples,
        tip: `confidence ${number(100 * bins.confidence[k])} %\naccuracy ${number(100 * bins.accuracy[k])} %\n${count(samples)} images` })).filter((bin) => bin.samples > 0));
    const side = Math.min(width, 380);
    return {
      width: side, height: side,
      layer: [
        { data: { values: [{ a: 0, b: 1 }] }, mark: { type: "rule", strokeDash: [4, 4], color: color("quiet") }, encoding: { x: { field: "a", type: "quantitative" }, y: { field: "a", type: "quantitative" }, x2: { field: "b" }, y2: { field: "b" } } },
        { data: { values }, mark: { type: "line", point: { size: 60 } }, encoding: {
          x: { field: "confidence", type: "quantitative", title: "confidence", scale: { domain: [0, 1] } }, y: { field: "accuracy", type: "quantitative", title: "accuracy", scale: { domain: [0, 1] } },
          color: { field: "kind", type: "nominal", title: null, scale: { domain: ["as trained", "after temperature scaling"], range: [color("few"), color("many")] } }, tooltip: { field: "tip" } } },
      ],
    };
  };

  const curveSpec = (run, kinds, title, scale) => (width) => {
    const values = run.curves.flatMap((record) => kinds.filter(([key]) => record[key] !== null && record[key] !== undefined)
      .map(([key, kind]) => ({ epoch: record.epoch, value: record[key], kind: kind(record), tip: `epoch ${record.epoch}\n${kind(record)} ${number(record[key], 4)}` })));
    const epochs = run.curves.map((record) => record.epoch);
    const last = epochs[epochs.length - 1];
    const domain = epochs[0] === last ? [last - 1, last + 1] : [epochs[0], last];
    return {
      width: Math.min(width, 420), height: 220, data: { values }, mark: { type: "line", point: values.length < 200 ? { size: 36 } : false },
      encoding: {
        x: { field: "epoch", type: "quantitative", title: "epoch", scale: { domain, nice: false }, axis: { format: "d", tickMinStep: 1, tickCount: 6 } },
        y: { field: "value", type: "quantitative", title, scale: scale(values) },
        color: { field: "kind", type: "nominal", title: null, legend: { columns: 2 }, scale: { scheme: "tableau10" } }, tooltip: { field: "tip" } },
    };
  };

  // ------------------------------------------------------------ class table
  const classTable = (section, run) => {
    const { classes } = run;
    const table = section.querySelector("table.classes");
    if (!table) return;
    const same = (other) => other.classes && other.classes.name.length === classes.name.length && other.classes.name.every((name, k) => name === classes.name[k]);
    const others = several ? runs.filter((other) => other !== run && same(other)) : [];
    const pictures = (runs.find((other) => same(other) && Object.keys(other.classPictures || {}).length) || run).classPictures || {};
    const fields = FIELDS.filter(([key]) => classes[key].some((value) => value !== null)).map(([key, title]) => ({ title, key, values: classes[key] }));
    others.slice(0, 5).forEach((other) => fields.push({ title: `recall, ${other.name}`, key: "other", values: other.classes.recall }));
    const state = { sort: fields.findIndex((field) => field.key === "train"), descending: true, page: 0, text: "", group: "" };
    const body = table.tBodies[0], status = section.querySelector(".shown-rows");
    const [previous, next] = [".previous", ".next"].map((name) => section.querySelector(name));
    const collator = new Intl.Collator(undefined, { numeric: true });

    const chosen = () => {
      const text = state.text.toLocaleLowerCase();
      const rows = [...classes.name.keys()].filter((k) => (!text || classes.name[k].toLocaleLowerCase().includes(text)) && (!state.group || classes.group[k] === state.group));
      const { values } = fields[state.sort];
      const sign = state.descending ? -1 : 1;
      return rows.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return sign * (typeof x === "string" ? collator.compare(x, y) : x - y) || a - b;
      });
    };
    const row = (k) => {
      const line = make("tr");
      const picture = make("td");
      if (pictures[k]) {
        const image = make("img");
        image.src = `data:image/jpeg;base64,${pictures[k]}`;
        image.alt = "";
        picture.append(image);
      }
      line.append(picture);
      fields.forEach(({ key, values }) => {
        const value = values[k];
        if (key === "name") line.append(make("td", value, "name"));
        else if (key === "group") line.append(make("td", value, `badge ${value}`));
        else line.append(make("td", key === "train" || key === "test" ? count(value) : number(value), "number"));
      });
      return line;
    };
    const show = () => {
      const rows = chosen();
      const pages = Math.max(1, Math.ceil(rows.length / ROWS));
      state.page = Math.min(state.page, pages - 1);
      const first = state.page * ROWS;
      body.replaceChildren(...rows.slice(first, first + ROWS).map(row));
      status.textContent = rows.length ? `${count(first + 1)}–${count(Math.min(first + ROWS, rows.length))} of ${count(rows.length)} classes` : "no class";
      previous.disabled = state.page === 0;
      next.disabled = state.page === pages - 1;
      [...table.tHead.rows[0].cells].slice(1).forEach((cell, k) => {
        cell.setAttribute("aria-sort", k === state.sort ? (state.descending ? "descending" : "ascending") : "none");
        cell.firstChild.textContent = fields[k].title + (k === state.sort ? (state.descending ? " ▼" : " ▲") : "");
      });
    };
    const head = make("tr");
    head.append(make("td"));
    fields.forEach((field, k) => {
      const cell = make("th", undefined, field.key === "name" || field.key === "group" ? "" : "number");
      cell.scope = "col";
      const button = make("button", field.title);
      button.type = "button";
      button.dataset.field = field.key;
      button.addEventListener("click", () => {
        state.descending = state.sort === k ? !state.descending : field.key !== "name" && field.key !== "group";
        state.sort = k;
        state.page = 0;
        show();
      });
      cell.append(button);
      head.append(cell);
    });
    table.tHead.append(head);
    section.querySelector(".filter").addEventListener("input", (event) => { state.text = event.target.value; state.page = 0; show(); });
    section.querySelector(".group").addEventListener("change", (event) => { state.group = event.target.value; state.page = 0; show(); });
    previous.addEventListener("click", () => { state.page -= 1; show(); });
    next.addEventListener("click", () => { state.page += 1; show(); });
    show();
  };

  // ---------------------------------------------------------------- gallery
  const gallery = (element, cards, run) => {
    if (!element) return;
    const names = run.classes.name;
    cards.forEach(([sample, source, label, predicted, confidence, own]) => {
      const figure = make("figure");
      const data = (run.samplePictures || {})[sample];
      if (data) {
        const image = make("img");
        image.src = `data:image/jpeg;base64,${data}`;
        image.alt = `test image of ${names[label]}`;
        image.decoding = "async"; // not lazy: paper has no scrolling
        figure.append(image);
      }
      const caption = make("figcaption");
      const wrong = label !== predicted;
      const line = (text, className) => {
        const element = make("div", text, `${className} cut`);
        element.title = text;
        caption.append(element);
      };
      line(wrong ? `true: ${names[label]}` : names[label], "");
      if (wrong) line(`predicted: ${names[predicted]}`, "few");
      caption.append(make("small", wrong ? `${number(100 * confidence)} % sure; its class ${number(100 * own)} %` : `${number(100 * confidence)} % sure`));
      const origin = make("small", source || `sample ${sample}`, "cut");
      origin.title = source;
      caption.append(origin);
      figure.append(caption);
      element.append(figure);
    });
  };

  // ------------------------------------------------------------------- page
  const fill = (section, run) => {
    if (section.dataset.filled) return;
    section.dataset.filled = "yes";
    classTable(section, run);
    gallery(section.querySelector(".mistakes"), run.mistakes, run);
    gallery(section.querySelector(".hits"), run.hits, run);
    const find = (name) => section.querySelector(name);
    if (run.confusion) add(find(".confusion-chart"), confusionSpec(run), { canvas: run.confusion.cells.length > 1500 });
    if (run.reliability) add(find(".reliability-chart"), reliabilitySpec(run));
    if (run.curves.length) {
      const zero = () => ({ zero: false });
      add(find(".loss-chart"), curveSpec(run, [["train loss", () => "training loss"], ["split loss", (r) => `${r.split} loss (plain cross entropy)`]], "loss", zero), { widest: 500 });
      add(find(".accuracy-chart"), curveSpec(run, ["all", "balanced", ...GROUPS].map((key) => [key, (r) => `${key} (${r.split})`]), "accuracy (%)", () => ({ domain: [0, 100] })), { widest: 500 });
      add(find(".rate-chart"), curveSpec(run, [["lr", () => "learning rate"]], "learning rate", (values) => (values.every((v) => v.value > 0) ? { type: "log", nice: false } : {})), { widest: 500 });
    }
  };
  const sections = [...document.querySelectorAll("section.run")];
  const choose = (chosen) => {
    sections.forEach((section, k) => { section.hidden = k !== chosen; });
    fill(sections[chosen], runs[chosen]);
  };
  const choice = document.getElementById("run-choice");
  if (choice) choice.addEventListener("change", () => { choose(Number(choice.value)); drawVisible(false); });

  const sizes = document.getElementById("size-chart");
  if (runs.some((run) => run.classes)) {
    add(sizes, sizeSpec, { canvas: runs.reduce((sum, run) => sum + (run.classes ? run.classes.name.length : 0), 0) > 1500 });
  } else {
    sizes.replaceWith(make("p", "There are no numbers of classes to draw.", "note"));
  }
  choose(0);
  // After the first paint: text first, pictures when the browser has a moment.
  requestAnimationFrame(() => setTimeout(() => { drawVisible(false); document.body.dataset.ready = "yes"; }, 0));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawVisible(true));
  matchMedia("print").addEventListener("change", () => drawVisible(true));
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawVisible(true); } });
})();
