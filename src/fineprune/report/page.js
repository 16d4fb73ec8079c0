"use strict";
// Draws the masks of one channel of one layer. The place in the address, #layer=3&channel=5, is what is shown: links and the back button work.
(() => {
  const source = document.getElementById("masks-data");
  const root = document.getElementById("browser");
  if (!source || !root || typeof DecompressionStream === "undefined") return;
  const layers = JSON.parse(source.textContent);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).match(/[0-9a-f]{2}/g).map((two) => parseInt(two, 16));
  const DROPPED = [255, 255, 255], KEPT = colour("--kept"), MARKED = colour("--accent"), FAINT = [250, 228, 219], GAP = colour("--line");

  // Values 0 to 255 of a mask (bits) or of a statistic (bytes), row-major.
  async function values(item) {
    if (!item.values) {
      const packed = Uint8Array.from(atob(item.data), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
      const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
      const size = item.shape.reduce((a, b) => a * b, 1);
      item.values = item.bits ? Uint8Array.from({ length: size }, (_, k) => (bytes[k >> 3] & (128 >> (k & 7)) ? 255 : 0)) : bytes;
    }
    return item.values;
  }

  const made = (tag, parent, properties = {}) => parent.appendChild(Object.assign(document.createElement(tag), properties));
  const between = (from, to, value) => from.map((start, k) => start + ((to[k] - start) * value) / 255);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const short = (number) => (Number.isInteger(number) ? number : Number(number.toPrecision(3)));

  // colour(row, column) of every pixel of a drawing.
  function drawing(parent, rows, columns, colour, caption, broad) {
    const figure = made("figure", parent, { className: broad ? "broad" : "" });
    const canvas = made("canvas", figure, { width: columns, height: rows });
    canvas.style.width = `min(100%, ${broad ? Math.min(columns * 0.75, (26 * columns) / rows) : (11 * columns) / Math.max(rows, columns)}rem)`;
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let y = 0, at = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++, at += 4) image.data.set([...colour(y, x), 255], at);
    }
    context.putImageData(image, 0, 0);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", caption);
    made("figcaption", figure, { textContent: caption });
  }

  // Kernels of rows x columns as tiles with a line between them; tile(k) is where the values of the k-th begin.
  function tiles(parent, count, [rows, columns], tile, value, caption) {
    const across = Math.ceil(Math.sqrt((count * (rows + 1)) / (columns + 1)));
    const down = Math.ceil(count / across);
    drawing(parent, down * (rows + 1) - 1, across * (columns + 1) - 1, (y, x) => {
      const k = Math.floor(y / (rows + 1)) * across + Math.floor(x / (columns + 1));
      const [v, u] = [y % (rows + 1), x % (columns + 1)];
      return k >= count || v === rows || u === columns ? GAP : between(DROPPED, KEPT, value(tile(k) + v * columns + u));
    }, caption, false);
  }

  async function blocks(parent, item, channel) {
    const all = await values(item);
    if (item.whole) {
      drawing(parent, ...item.shape, (y, x) => between(DROPPED, KEPT, all[y * item.shape[1] + x]),
        `blocks, all channels together: ${percent(item.kept)} kept (too large for one page channel by channel)`, false);
      return;
    }
    const [, rows, columns] = item.shape;
    const mine = all.subarray(channel * rows * columns, (channel + 1) * rows * columns);
    const kept = mine.reduce((sum, one) => sum + (one > 0), 0);
    drawing(parent, rows, columns, (y, x) => between(DROPPED, KEPT, mine[y * columns + x]),
      `blocks of channel ${channel}: ${kept} of ${mine.length} kept`, false);
  }

  // Columns of the picture are channels (of one group) by taps; those of the channel are marked.
  async function weights(parent, item, channel, channels, taps) {
    const all = await values(item);
    if (item.whole) {
      drawing(parent, ...item.shape, (y, x) => between(DROPPED, KEPT, all[y * item.shape[1] + x]),
        `weights, averaged over cells: ${percent(item.kept)} kept (too large for one page channel by channel)`, true);
      return;
    }
    const [filters, inGroup, perKernel] = item.shape;
    const inside = channel % inGroup;
    const inGroups = Math.max(Math.round(filters / (channels / inGroup)), 1);
    const first = Math.floor(channel / inGroup) * inGroups;
    const row = inGroup * perKernel;
    let kept = 0;
    for (let k = 0; k < inGroups; k++) {
      for (let t = 0; t < perKernel; t++) kept += all[(first + k) * row + inside * perKernel + t] > 0;
    }
    tiles(parent, inGroups, taps, (k) => (first + k) * row + inside * perKernel, (at) => all[at],
      `kernels of channel ${channel}, a tile for each filter: ${kept} of ${inGroups * perKernel} weights kept`);
    drawing(parent, filters, row, (y, x) => {
      const marked = Math.floor(x / perKernel) === inside && y >= first && y < first + inGroups;
      return between(marked ? FAINT : DROPPED, marked ? MARKED : KEPT, all[y * row + x]);
    }, `all weights: a row for each of ${filters} filters, a column for each tap; channel ${channel} in orange`, true);
  }

  async function map(parent, item, channel) {
    const all = await values(item);
    const caption = `${item.what}, ${short(item.least)} (white) to ${short(item.most)}`;
    const [rows, columns] = item.shape.slice(-2);
    if (item.shape.length === 3) {
      drawing(parent, rows, columns, (y, x) => between(DROPPED, KEPT, all[(channel * rows + y) * columns + x]), caption, false);
    } else {
      const [filters, inGroup] = item.shape;
      tiles(parent, filters, [rows, columns], (k) => (k * inGroup + (channel % inGroup)) * rows * columns, (at) => all[at], caption);
    }
  }

  function channelsOf(layer) {
    const exact = [layer.blocks, ...layer.maps].filter((item) => item && !item.whole && item.shape.length === 3);
    if (exact.length) return exact[0].shape[0];
    if (layer.blocks) return layer.blocks.whole[0];
    return layer.weights.whole ? layer.weights.whole[1] : layer.weights.shape[1];
  }

  const controls = made("div", root, { className: "controls" });
  const select = made("select", controls, { ariaLabel: "layer" });
  layers.forEach((layer, k) => made("option", select, { value: k, textContent: layer.name }));
  const back = made("button", controls, { type: "button", textContent: "<", ariaLabel: "channel before" });
  const slider = made("input", controls, { type: "range", min: 0, value: 0, ariaLabel: "channel" });
  const next = made("button", controls, { type: "button", textContent: ">", ariaLabel: "next channel" });
  const place = made("output", controls);
  const drawings = made("div", root, { className: "drawings" });
  let turn = 0;

  async function show(number, channel) {
    const mine = ++turn;
    const layer = layers[number];
    const channels = channelsOf(layer);
    channel = Math.min(Math.max(channel, 0), channels - 1);
    select.value = number;
    slider.max = channels - 1;
    slider.value = channel;
    place.textContent = `channel ${channel}, the last is ${channels - 1}`;
    const fresh = document.createElement("div");
    if (layer.blocks) await blocks(fresh, layer.blocks, channel);
    for (const item of layer.maps) await map(fresh, item, channel);
    if (layer.weights) await weights(fresh, layer.weights, channel, channels, layer.taps);
    if (mine === turn) drawings.replaceChildren(...fresh.children);
  }

  const asked = () => {
    const words = new URLSearchParams(location.hash.slice(1));
    const number = Number(words.get("layer") || 0);
    return [number in layers ? number : 0, Number(words.get("channel")) || 0];
  };
  const go = (number, channel) => {
    history.replaceState(null, "", `#layer=${number}&channel=${channel}`);
    show(number, channel);
  };
  select.addEventListener("change", () => go(Number(select.value), 0));
  slider.addEventListener("input", () => go(Number(select.value), Number(slider.value)));
  back.addEventListener("click", () => go(Number(select.value), Math.max(Number(slider.value) - 1, 0)));
  next.addEventListener("click", () => go(Number(select.value), Math.min(Number(slider.value) + 1, Number(slider.max))));
  window.addEventListener("hashchange", () => {
    show(...asked());
    root.scrollIntoView({ block: "nearest" });
  });
  root.hidden = false;
  show(...asked());
})();
