// What is wrong with the page as it is laid out now, as a list of sentences; see examine.py for what is asked.
(() => {
  const found = [];
  const root = document.scrollingElement;
  const wide = root.clientWidth;
  const named = (e) => `<${e.tagName.toLowerCase()}${e.getAttribute("class") ? "." + e.getAttribute("class") : ""}> ` +
    JSON.stringify((e.textContent || "").trim().slice(0, 40));
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const meets = (a, b, by = 1) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > by && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > by;

  // Nothing sticks out: not the page, nor an element, unless the reader can scroll it.
  const scrolls = (e) => e && e !== root && e !== document.body &&
    (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  if (root.scrollWidth > wide) found.push(`the page is ${root.scrollWidth} px wide in ${wide}`);
  for (const e of all("body *")) {
    const place = e.getBoundingClientRect();
    if (place.width && (place.right > wide + 0.5 || place.left < -0.5) && !scrolls(e.parentElement))
      found.push(`sticks out, ${place.left.toFixed(0)} to ${place.right.toFixed(0)} of ${wide} px: ${named(e)}`);
    if (e.scrollWidth > e.clientWidth + 1 && ["hidden", "clip"].includes(getComputedStyle(e).overflowX) && !e.ownerSVGElement)
      found.push(`cut off: ${named(e)}`);
  }

  // The texts of a drawing lie inside it and beside each other.
  for (const svg of all("svg")) {
    const frame = svg.getBoundingClientRect();
    const texts = all("text", svg).map((e) => [e, e.getBoundingClientRect()]);
    texts.forEach(([e, place], k) => {
      if (place.left < frame.left - 0.5 || place.right > frame.right + 0.5 || place.top < frame.top - 1 || place.bottom > frame.bottom + 1)
        found.push(`leaves its drawing: ${named(e)}`);
      for (const [other, there] of texts.slice(k + 1)) if (meets(place, there)) found.push(`overlap: ${named(e)} and ${named(other)}`);
    });
    // A label that is shortened keeps its end; one that ends in an ellipsis has been cut.
    for (const e of all("text, tspan", svg)) if (/(…|\.\.\.)\s*$/.test([...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("")))
      found.push(`a cut label: ${named(e)}`);

    // Marks at one place are told apart: dots by their size, lines by their dashes.
    const dots = all("circle", svg).map((e) => [e, e.getBoundingClientRect()]);
    dots.forEach(([e, a], k) => {
      for (const [, b] of dots.slice(k + 1)) {
        const apart = Math.hypot((a.left + a.right - b.left - b.right) / 2, (a.top + a.bottom - b.top - b.bottom) / 2);
        if (apart < 1 && Math.abs(a.width - b.width) < 2) found.push(`coincident marks: ${named(e)} at ${a.left.toFixed(0)}, ${a.top.toFixed(0)}`);
      }
    });
    const path = (e) => ["points", "d", "x1", "y1", "x2", "y2"].map((name) => e.getAttribute(name)).join() + getComputedStyle(e).strokeDasharray;
    const paths = all("polyline, path, line:not(.grid)", svg).map((e) => [e, path(e)]);
    paths.forEach(([e, a], k) => { if (paths.slice(k + 1).some(([, b]) => a === b)) found.push(`coincident marks: ${named(e)}`); });
    if (svg.getAttribute("role") !== "img" && svg.getAttribute("aria-hidden") !== "true") found.push("a drawing is neither role=img nor hidden");
  }

  // WCAG 2.1 AA, 1.4.3: 4.5 to 1, and 3 to 1 for large text.
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const upon = ([r, g, b, a], under) => [r, g, b].map((v, k) => v * a + under[k] * (1 - a));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const chain = (e) => (e ? [...chain(e.parentElement), e] : []);
  const ground = (e) => chain(e).reduce((under, one) => upon(rgba(getComputedStyle(one).backgroundColor), under), [255, 255, 255]);
  const faded = (e, [r, g, b, a]) => [r, g, b, chain(e).reduce((left, one) => left * Number(getComputedStyle(one).opacity), a)];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const judged = new Set();
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || judged.has(e) || !e.getClientRects().length || e.closest("title, style, script")) continue;
    judged.add(e);
    const style = getComputedStyle(e), svg = e.ownerSVGElement, size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const grounds = [ground(svg || e)];
    if (svg) for (const shape of all("rect, circle, polygon", svg)) {
      const fill = getComputedStyle(shape).fill;
      if (fill === "none" || !meets(shape.getBoundingClientRect(), e.getBoundingClientRect())) continue;
      const [r, g, b, a] = faded(shape, rgba(fill));
      grounds.push(upon([r, g, b, a * Number(getComputedStyle(shape).fillOpacity)], grounds[0]));
    }
    for (const under of grounds) {
      const got = ratio(upon(faded(e, rgba(svg ? style.fill : style.color)), under), under);
      if (got < least) found.push(`contrast ${got.toFixed(2)}, at least ${least} to 1: ${named(e)}`);
    }
  }

  // Readers who do not see the page get its names and its order.
  for (const e of all('[role="img"]')) if (!(e.getAttribute("aria-label") || "").trim()) found.push(`no label: ${named(e)}`);
  const levels = all("h1, h2, h3, h4, h5, h6").map((e) => Number(e.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1 || levels[0] !== 1) found.push(`headings begin ${levels.slice(0, 3)}; expected one h1, first`);
  levels.forEach((level, k) => { if (k && level > levels[k - 1] + 1) found.push(`a heading of level ${level} follows one of ${levels[k - 1]}`); });
  if (!document.documentElement.lang) found.push("no language");
  if (!document.title.trim()) found.push("no title");
  for (const e of all("th, caption, summary, a, button, h1, h2, h3, h4")) if (!e.textContent.trim()) found.push(`says nothing: ${named(e)}`);
  const ids = all("[id]").map((e) => e.id);
  if (new Set(ids).size !== ids.length) found.push("an id is there twice");

  // Nothing that runs, and nothing that is fetched.
  for (const e of all("*")) for (const { name, value } of e.attributes) {
    if (name.startsWith("on")) found.push(`runs: ${e.tagName} ${name}`);
    if (/^\s*(javascript|vbscript):/i.test(value) && ["href", "src", "action", "xlink:href"].includes(name)) found.push(`runs: ${e.tagName} ${name}`);
    if (["src", "srcset", "poster", "action", "data", "background"].includes(name) || (/(^|:)href$/.test(name) && !value.startsWith("#")))
      found.push(`refers outside: ${e.tagName} ${name}=${value.slice(0, 60)}`);
  }
  const told = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).map((rule) => rule.cssText);
  for (const words of [...told, ...all("[style]").map((e) => e.getAttribute("style"))])
    for (const [url] of words.matchAll(/@import[^;]*|url\(["']?(?!["']?#)[^)]*/g)) found.push(`refers outside: ${url.slice(0, 60)}`);
  for (const e of all("script, iframe, object, embed, link, base, form, meta[http-equiv]")) found.push(`a ${e.tagName.toLowerCase()} in the page`);
  return found;
})()
