(() => {
  const PAGE = 100;
  const boards = JSON.parse(document.getElementById("data").textContent);
  const { element } = viewer;
  const distinct = (values) => [...new Set(values.filter((value) => value !== undefined && value !== ""))].sort(
    (a, b) => a.localeCompare(b, "en", { numeric: true }));
  const arrow = { true: " \u2191", false: " \u2193", null: "" };

  function fields(board) {
    const list = [{ key: "t", title: "tokenizer", text: true, get: (row) => row.t }];
    if (board.ranked) list.push({ key: "r", title: "rank", get: (row) => row.r ?? null });
    if (board.grouped) list.push({ key: "g", title: "group", text: true, get: (row) => row.g ?? "" });
    if (board.mixed) list.push({ key: "o", title: "origin", text: true, get: (row) => row.o });
    board.columns.forEach((column, index) => list.push({
      key: "c" + index, column, index, title: column.name + arrow[column.higher] + (column.unit ? " (" + column.unit + ")" : ""),
      get: (row) => (row.c[index] ? row.c[index][0] : null),
    }));
    list.push({ key: "k", title: "code", text: true, get: (row) => row.k ?? "" });
    if (board.rows.some((row) => row.b)) list.push({ key: "b", title: "codebook", text: true, get: (row) => row.b ?? "" });
    if (board.rows.some((row) => row.l)) list.push({ key: "l", title: "licence", text: true, get: (row) => row.l ?? "" });
    for (const [key, title] of [["e", "enc/s"], ["d", "dec/s"]]) {
      if (board.rows.some((row) => row[key])) list.push({ key, title, speed: true, get: (row) => (row[key] ? 1 / row[key] : null) });
    }
    return list;
  }

  function setUp(section) {
    const board = boards[Number(section.dataset.board)];
    const list = fields(board);
    const state = { sort: null, down: false, page: 0, filters: {}, words: "", range: "", low: null, high: null };
    const form = section.querySelector("form");
    const status = section.querySelector(".status");
    const table = section.querySelector("table");
    const pages = section.querySelector(".pages");
    const again = () => { state.page = 0; draw(); };
    const labelled = (title, input) => {
      const label = element("label", title);
      input.setAttribute("aria-label", title);
      label.append(input);
      form.append(label);
      return input;
    };
    const search = labelled("Name contains", element("input"));
    search.type = "search";
    search.name = "words";
    search.addEventListener("input", () => { state.words = search.value.toLowerCase(); again(); });
    for (const [key, title] of [["o", "Origin"], ["k", "Code"], ["b", "Codebook"], ["l", "Licence"], ["g", "Budget group"]]) {
      const values = distinct(board.rows.map((row) => row[key]));
      if (values.length < 2) continue;
      const select = labelled(title, element("select"));
      select.name = key;
      const all = element("option", "all");
      all.value = "";
      select.append(all, ...values.map((value) => element("option", value)));
      select.addEventListener("change", () => { state.filters[key] = select.value; again(); });
    }
    const numeric = list.filter((field) => field.column);
    if (numeric.length) {
      const select = labelled("Range of", element("select"));
      select.name = "range";
      select.append(...numeric.map((field) => { const o = element("option", field.column.name); o.value = field.key; return o; }));
      state.range = numeric[0].key;
      select.addEventListener("change", () => { state.range = select.value; again(); });
      for (const [key, title] of [["low", "from"], ["high", "to"]]) {
        const input = labelled(title, element("input"));
        input.type = "number";
        input.step = "any";
        input.name = key;
        input.addEventListener("input", () => { state[key] = input.value === "" ? null : Number(input.value); again(); });
      }
    }
    const detail = element("input");
    detail.type = "checkbox";
    detail.name = "detail";
    const label = element("label", undefined, "row");
    label.append(detail, "show n and intervals");
    form.append(label);
    detail.addEventListener("change", () => table.classList.toggle("wide", detail.checked));
    form.addEventListener("submit", (event) => event.preventDefault());

    const head = element("tr");
    for (const field of list) {
      const cell = element("th", undefined, field.text ? "text" : "");
      cell.scope = "col";
      const button = element("button", field.title);
      button.type = "button";
      button.title = (field.column && field.column.about ? field.column.about + "; " : "") + "sort";
      button.addEventListener("click", () => {
        const first = field.column && field.column.higher === true;
        if (state.sort === field) state.down = !state.down;
        else { state.sort = field; state.down = Boolean(first) || Boolean(field.speed); }
        again();
      });
      cell.append(button);
      head.append(cell);
      field.head = cell;
    }
    table.querySelector("thead").append(head);

    function chosen() {
      const ranged = list.find((field) => field.key === state.range);
      const rows = board.rows.filter((row) => {
        if (state.words && !row.t.toLowerCase().includes(state.words)) return false;
        for (const [key, value] of Object.entries(state.filters)) if (value && row[key] !== value) return false;
        if (state.low !== null || state.high !== null) {
          const value = ranged.get(row);
          if (value === null || (state.low !== null && value < state.low) || (state.high !== null && value > state.high)) return false;
        }
        return true;
      });
      if (!state.sort) return rows;
      const sign = state.down ? -1 : 1;
      const keyed = rows.map((row, index) => [state.sort.get(row), index, row]);
      keyed.sort((a, b) => {
        const emptyA = a[0] === null || a[0] === "", emptyB = b[0] === null || b[0] === "";
        if (emptyA || emptyB) return emptyA === emptyB ? a[1] - b[1] : emptyA ? 1 : -1;
        const order = state.sort.text ? a[0].localeCompare(b[0], "en", { numeric: true }) : a[0] - b[0];
        return sign * order || a[1] - b[1];
      });
      return keyed.map((item) => item[2]);
    }

    function cellOf(field, row) {
      if (field.key === "t") {
        const made = element("th", row.t, row.o === "reported" ? "reported" : "");
        made.scope = "row";
        made.title = [row.t, row.s, row.n].filter(Boolean).join("; ");
        if (row.s) made.append(element("span", [row.s, row.n].filter(Boolean).join("; "), "said"));
        return made;
      }
      if (field.key === "r") {
        const made = element("td", row.r ? row.r + (row.i ? "=" : "") : "\u2013");
        if (row.w) made.title = "not ranked: " + row.w;
        return made;
      }
      if (field.column) {
        const cell = row.c[field.index];
        if (!cell) return element("td", "");
        const made = element("td", cell[0] === null ? "\u2013" : cell[3] || cell[0].toFixed(field.column.decimals));
        if (cell[2]) made.append(element("span", cell[2], "more"));
        if (cell[1]) { made.title = cell[1]; made.append(element("span", cell[1], "said")); }
        return made;
      }
      const value = field.get(row);
      return element("td", field.speed ? (value === null ? "" : value.toPrecision(3)) : value, field.text ? "text" : "");
    }

    function draw() {
      const rows = chosen();
      const count = Math.max(1, Math.ceil(rows.length / PAGE));
      state.page = Math.min(Math.max(state.page, 0), count - 1);
      const body = document.createDocumentFragment();
      for (const row of rows.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
        const line = element("tr");
        if (row.x) {
          line.append(cellOf(list[0], row));
          const why = element("td", row.x, "why");
          why.colSpan = list.length - 1;
          line.append(why);
        } else {
          line.append(...list.map((field) => cellOf(field, row)));
        }
        body.append(line);
      }
      table.querySelector("tbody").replaceChildren(body);
      for (const field of list) {
        if (state.sort === field) field.head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else field.head.removeAttribute("aria-sort");
      }
      status.textContent = rows.length === board.rows.length ? rows.length + " rows" : rows.length + " of " + board.rows.length + " rows";
      pages.replaceChildren();
      if (count > 1) {
        for (const [title, step] of [["Previous", -1], ["Next", 1]]) {
          const button = element("button", title);
          button.type = "button";
          button.disabled = step < 0 ? state.page === 0 : state.page === count - 1;
          button.addEventListener("click", () => {
            state.page += step;
            draw();
            const same = [...pages.querySelectorAll("button")].find((other) => other.textContent === title && !other.disabled);
            if (same) same.focus();
          });
          pages.append(button);
        }
        pages.insertBefore(element("span", "page " + (state.page + 1) + " of " + count), pages.lastChild);
      }
    }
    draw();
    if (board.gallery) viewer.gallery(section.querySelector(".gallery"), board.gallery);
  }

  const sections = [...document.querySelectorAll("section[data-board]")];
  const choose = document.getElementById("choose");
  const modality = document.getElementById("modality");
  const ready = new Set();
  function show(id, push) {
    const section = sections.find((item) => item.id === id) ?? sections[0];
    if (!section) return;
    if (!ready.has(section)) { setUp(section); ready.add(section); }
    for (const item of sections) item.hidden = item !== section;
    choose.value = section.id;
    if (push) history.replaceState(null, "", "#" + section.id);
  }
  choose.addEventListener("change", () => show(choose.value, true));
  modality.addEventListener("change", () => {
    let first = null;
    for (const option of choose.options) {
      option.hidden = option.disabled = Boolean(modality.value) && option.dataset.modality !== modality.value;
      if (!option.hidden && first === null) first = option.value;
    }
    if (choose.selectedOptions.length === 0 || choose.selectedOptions[0].disabled) show(first, true);
  });
  window.addEventListener("hashchange", () => show(location.hash.slice(1), false));
  viewer.theme();
  show(location.hash.slice(1), false);
})();
