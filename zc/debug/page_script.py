"""Script of ``report.html``: sorting and filtering tables, and the value under the pointer."""

SCRIPT = """
"use strict";
function compare(a, b) {
  const x = Number(a), y = Number(b);
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}
function sortBy(head) {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const order = head.dataset.order === "1" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) delete other.dataset.order;
  head.dataset.order = order;
  const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => order * compare(key(a), key(b)));
  body.append(...rows);
}
for (const head of document.querySelectorAll("table.sortable th")) {
  head.addEventListener("click", () => sortBy(head));
}
for (const box of document.querySelectorAll("input[data-table]")) {
  const body = document.getElementById(box.dataset.table).tBodies[0];
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
function bytesText(count) {
  const units = ["B", "KB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return (unit ? count.toPrecision(3) : count) + " " + units[unit];
}
function followPointer(curve, points) {
  const cursor = document.getElementById("cursor"), tip = document.getElementById("tip");
  const box = curve.viewBox.baseVal, left = Number(curve.dataset.left);
  const span = box.width - left - Number(curve.dataset.right);
  curve.addEventListener("pointermove", (event) => {
    const frame = curve.getBoundingClientRect();
    const x = (event.clientX - frame.left) * box.width / frame.width;
    const index = (x - left) / span * Number(curve.dataset.end);
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (points[middle].index <= index) low = middle; else high = middle - 1;
    }
    const point = points[low];
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const where = `${point.phase}, node ${point.index}`;
    tip.textContent = [`%${point.node}`, point.op, where, bytesText(point.bytes)].join("\\n");
    tip.style.display = "block";
    const room = frame.width - tip.offsetWidth - 8;
    tip.style.left = Math.max(0, Math.min(event.clientX - frame.left + 14, room)) + "px";
    tip.style.top = Math.max(0, event.clientY - frame.top - tip.offsetHeight - 12) + "px";
  });
  curve.addEventListener("pointerleave", () => { tip.style.display = "none"; });
}
const curve = document.getElementById("curve");
if (curve) followPointer(curve, JSON.parse(document.getElementById("points").textContent));
"""
