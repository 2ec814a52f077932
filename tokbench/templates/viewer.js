"use strict";
const viewer = (() => {
  const media = JSON.parse(document.getElementById("media").textContent);
  const MOST = 16;
  const FIRST = 3;

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined && text !== null) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const labelled = (title, input, className) => {
    const label = element("label", title, className);
    input.setAttribute("aria-label", title);
    label.append(input);
    return label;
  };
  const decoded = new Map();
  function pixels(index) {
    if (!decoded.has(index)) {
      const image = new Image();
      image.src = media[index];
      decoded.set(index, image.decode().then(() => {
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, canvas.width, canvas.height);
      }));
    }
    return decoded.get(index);
  }

  // What all panes of one viewer share: zoom, the point of the picture in their middle (0..1), and the difference's factor.
  function pictures(host, panes) {
    const view = { zoom: 1, x: 0.5, y: 0.5, factor: 8 };
    const canvases = [];
    const zoom = element("input");
    zoom.type = "range";
    zoom.min = "1";
    zoom.max = String(MOST);
    zoom.step = "0.5";
    zoom.value = "1";
    const factor = element("select");
    for (const value of [1, 2, 4, 8, 16, 32]) {
      const option = element("option", "\u00d7 " + value);
      option.value = String(value);
      factor.append(option);
    }
    factor.value = String(view.factor);
    const controls = element("div", null, "controls");
    controls.append(labelled("Zoom", zoom), labelled("Difference", factor),
      element("p", "Click a picture to zoom, drag to move; + \u2212 0 and the arrow keys do the same.", "small"));
    const grid = element("div", null, "panes");
    host.append(controls, grid);

    function place() {
      const half = 0.5 / view.zoom;
      view.x = Math.min(Math.max(view.x, half), 1 - half);
      view.y = Math.min(Math.max(view.y, half), 1 - half);
      zoom.value = String(view.zoom);
      for (const canvas of canvases) {
        canvas.style.transform = "scale(" + view.zoom + ") translate(" + (half - view.x) * 100 + "%, " + (half - view.y) * 100 + "%)";
        canvas.parentElement.classList.toggle("zoomed", view.zoom > 1);
      }
    }
    function set(level, x, y) {
      view.zoom = Math.min(Math.max(level, 1), MOST);
      if (x !== undefined) { view.x = x; view.y = y; }
      place();
    }
    zoom.addEventListener("input", () => set(Number(zoom.value)));
    // Where on the picture an event is, 0..1.
    function at(box, event) {
      const frame = box.getBoundingClientRect();
      return [view.x + ((event.clientX - frame.left) / frame.width - 0.5) / view.zoom,
        view.y + ((event.clientY - frame.top) / frame.height - 0.5) / view.zoom];
    }
    function listen(box) {
      let from = null;
      box.addEventListener("pointerdown", (event) => {
        from = { x: event.clientX, y: event.clientY, cx: view.x, cy: view.y, moved: false };
        box.setPointerCapture(event.pointerId);
      });
      box.addEventListener("pointermove", (event) => {
        if (!from) return;
        const frame = box.getBoundingClientRect();
        const dx = event.clientX - from.x, dy = event.clientY - from.y;
        if (Math.abs(dx) + Math.abs(dy) > 4) from.moved = true;
        if (from.moved && view.zoom > 1) set(view.zoom, from.cx - dx / frame.width / view.zoom, from.cy - dy / frame.height / view.zoom);
      });
      box.addEventListener("pointercancel", () => { from = null; });
      box.addEventListener("pointerup", (event) => {
        if (from && !from.moved && event.button === 0) {
          if (view.zoom > 1) set(1, 0.5, 0.5);
          else set(4, ...at(box, event));
        }
        from = null;
      });
      // A pinch on a trackpad arrives as Ctrl and the wheel; the bare wheel scrolls the page unless a picture is zoomed.
      box.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && view.zoom === 1) return;
        event.preventDefault();
        const [x, y] = at(box, event);
        const next = Math.min(Math.max(view.zoom * (event.deltaY < 0 ? 1.25 : 0.8), 1), MOST);
        set(next, x + (view.x - x) * view.zoom / next, y + (view.y - y) * view.zoom / next);
      }, { passive: false });
      box.addEventListener("keydown", (event) => {
        const step = 0.1 / view.zoom;
        const keys = {
          "+": () => set(view.zoom * 1.5), "=": () => set(view.zoom * 1.5), "-": () => set(view.zoom / 1.5), 0: () => set(1, 0.5, 0.5),
          Enter: () => (view.zoom > 1 ? set(1, 0.5, 0.5) : set(4)),
          ArrowLeft: () => set(view.zoom, view.x - step, view.y), ArrowRight: () => set(view.zoom, view.x + step, view.y),
          ArrowUp: () => set(view.zoom, view.x, view.y - step), ArrowDown: () => set(view.zoom, view.x, view.y + step),
        };
        if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
        if (event.key.startsWith("Arrow") && view.zoom === 1) return;
        event.preventDefault();
        keys[event.key]();
      });
    }

    const differences = [];
    function picture(label) {
      const box = element("div", null, "view");
      box.tabIndex = 0;
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", label);
      const canvas = element("canvas");
      box.append(canvas);
      canvases.push(canvas);
      listen(box);
      return [box, canvas];
    }
    function put(canvas, image, what) {
      canvas.dataset.shows = what;
      canvas.width = image.width;
      canvas.height = image.height;
      canvas.getContext("2d").putImageData(image, 0, 0);
    }
    function subtract(canvas, a, b) {
      const out = new ImageData(a.width, a.height);
      for (let i = 0; i < out.data.length; i += 4) {
        for (let c = 0; c < 3; c += 1) out.data[i + c] = Math.min(255, Math.abs(a.data[i + c] - b.data[i + c]) * view.factor);
        out.data[i + 3] = 255;
      }
      put(canvas, out, "difference " + view.factor);
    }
    function again() {
      for (const item of differences) {
        item.label.textContent = "|original \u2212 reconstruction| \u00d7 " + view.factor;
        Promise.all([pixels(item.a), pixels(item.b)]).then(([a, b]) => subtract(item.canvas, a, b));
      }
    }
    factor.addEventListener("change", () => { view.factor = Number(factor.value); again(); });

    function draw(list) {
      grid.replaceChildren();
      canvases.length = 0;
      differences.length = 0;
      for (const pane of list) {
        const figure = element("figure", null, "pane");
        const [box, canvas] = picture(pane.title);
        pixels(pane.file).then((image) => put(canvas, image, "picture"));
        const caption = element("figcaption");
        caption.append(element("strong", pane.title), element("span", pane.text ? " " + pane.text : ""));
        figure.append(box, caption);
        if (pane.minus !== undefined) {
          const [other, second] = picture("Difference of " + pane.title + " from the original");
          const label = element("figcaption", "", "small");
          differences.push({ a: pane.minus, b: pane.file, canvas: second, label });
          figure.append(other, label);
        }
        grid.append(figure);
      }
      again();
      place();
    }
    draw(panes);
    return draw;
  }

  function sounds(host, panes) {
    const grid = element("div", null, "panes sounds");
    host.append(grid);
    function draw(list) {
      grid.replaceChildren();
      const players = [];
      for (const pane of list) {
        const figure = element("figure", null, "pane");
        const caption = element("figcaption");
        caption.append(element("strong", pane.title), element("span", pane.text ? " " + pane.text : ""));
        const player = element("audio");
        player.controls = true;
        player.preload = "metadata";
        player.src = media[pane.file];
        player.setAttribute("aria-label", pane.title);
        // One at a time, going on where the other one was: what differs is heard at once.
        player.addEventListener("play", () => {
          for (const other of players) {
            if (other === player || other.paused) continue;
            player.currentTime = other.currentTime;
            other.pause();
          }
        });
        players.push(player);
        figure.append(caption, player);
        grid.append(figure);
      }
    }
    draw(panes);
    return draw;
  }

  const show = (host, kind, panes) => (kind === "audio" ? sounds : pictures)(host, panes);

  // A board's samples: which one, and which tokenizers beside the original.
  function gallery(host, board) {
    const choose = element("select");
    board.samples.forEach((sample, index) => {
      const option = element("option", sample.key);
      option.value = String(index);
      choose.append(option);
    });
    const names = [];
    for (const sample of board.samples) for (const [name] of sample.shown) if (!names.includes(name)) names.push(name);
    const step = Math.max(1, Math.floor(names.length / FIRST));
    const chosen = new Set(names.filter((name, index) => index % step === 0).slice(0, FIRST));
    const boxes = element("fieldset", null, "names");
    boxes.append(element("legend", "Tokenizers"));
    for (const name of names) {
      const box = element("input");
      box.type = "checkbox";
      box.checked = chosen.has(name);
      box.addEventListener("change", () => { if (box.checked) chosen.add(name); else chosen.delete(name); update(); });
      const label = element("label", null, "row");
      label.append(box, name);
      boxes.append(label);
    }
    const about = element("p", null, "small");
    const place = element("div");
    host.append(labelled("Sample", choose), boxes, about, place);
    const panes = () => {
      const sample = board.samples[Number(choose.value)];
      const mine = sample.shown.filter(([name]) => chosen.has(name));
      about.textContent = sample.about ? "Shown: " + sample.about + "." : "";
      return [{ title: "original", text: sample.key, file: sample.original },
        ...mine.map(([name, file, text]) => ({ title: name, text, file, minus: sample.original }))];
    };
    const draw = show(place, board.kind, panes());
    const update = () => draw(panes());
    choose.addEventListener("change", update);
    for (const line of board.said) host.append(element("p", line, "small"));
  }

  function theme() {
    document.getElementById("theme").addEventListener("click", () => {
      const root = document.documentElement;
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    });
  }

  return { element, show, gallery, theme };
})();
