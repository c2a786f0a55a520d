"use strict";
// Values under the pointer, or under the arrow keys; without this script the page loses nothing else.
(function () {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);
  const said = (value) => {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-3 || size >= 1e7) return value.toExponential(1);
    return size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  };
  for (const plot of document.querySelectorAll("svg[data-x]")) {
    const [x0, x1] = plot.dataset.x.split(" ").map(Number);
    const [y0, y1] = plot.dataset.y.split(" ").map(Number);
    const [left, right, top, bottom] = plot.dataset.frame.split(" ").map(Number);
    const lines = [...plot.querySelectorAll("polyline[data-name]")].map((line) => ({
      name: line.dataset.name,
      points: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
    }));
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", top);
    cursor.setAttribute("y2", bottom);
    cursor.setAttribute("visibility", "hidden");
    plot.append(cursor);
    let at = right;
    const show = (x) => {
      at = Math.min(right, Math.max(left, x));
      const told = ["step " + Math.round(x0 + ((at - left) / (right - left)) * (x1 - x0))];
      for (const line of lines) {
        const near = line.points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
        told.push(line.name + "  " + said(y1 - ((near[1] - top) / (bottom - top)) * (y1 - y0)));
      }
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.setAttribute("visibility", "visible");
      tip.textContent = told.join("\n");
      tip.hidden = false;
      const box = plot.getBoundingClientRect();
      const place = box.left + (at / plot.viewBox.baseVal.width) * box.width + 12;
      tip.style.left = window.scrollX + Math.max(4, Math.min(place, window.innerWidth - tip.offsetWidth - 12)) + "px";
      tip.style.top = window.scrollY + box.top + 6 + "px";
    };
    const hide = () => {
      tip.hidden = true;
      cursor.setAttribute("visibility", "hidden");
    };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      show(((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width);
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      show(at + (step * (right - left)) / 40);
    });
  }
})();
