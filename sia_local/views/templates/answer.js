"use strict";
const steps = JSON.parse(document.getElementById("data").textContent);
const answer = document.getElementById("answer"), panel = document.getElementById("panel");
const tokens = [...answer.querySelectorAll(".t")];
let pinned = null, shown = null;

const element = (tag, text, className) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};
const percent = (p) => (p >= 0.0995 ? Math.round(p * 100) : (p * 100).toFixed(1)) + "\u00a0%";

function cell(row, p) {
  const td = element("td", undefined, "n bar"), bar = element("i");
  bar.style.width = Math.min(100, p * 100) + "%";
  td.append(bar, element("b", percent(p)));
  row.append(td);
}

function show(token) {
  if (shown === token) return;
  if (shown) shown.classList.remove("on");
  shown = token;
  if (!token) return;
  token.classList.add("on");
  const step = steps[tokens.indexOf(token)];
  panel.replaceChildren(element("h2", step.title), element("p", step.story));
  const table = element("table"), head = element("tr");
  for (const [name, numeric] of [["Candidate", 0], ["Base", 1], ...(step.steered ? [["Value", 1], ["Steered", 1]] : [])])
    head.append(element("th", name, numeric ? "n" : ""));
  table.append(element("thead"), element("tbody"));
  table.tHead.append(head);
  for (const c of step.candidates) {
    const row = element("tr", undefined, c.chosen ? "chosen" : "");
    row.append(element("td", (c.chosen ? "▸ " : "  ") + c.text, "piece"));
    if (c.chosen) row.firstChild.setAttribute("aria-label", c.text + ", written");
    cell(row, c.p_base);
    if (step.steered) {
      row.append(element("td", c.value === null ? "–" : c.value.toFixed(3), "n"));
      cell(row, c.p_steered);
    }
    table.tBodies[0].append(row);
  }
  if (step.candidates.length) panel.append(table);
  panel.append(element("p", step.cost, "keys"));
}

function go(token) {
  if (!token) return;
  pinned = token;
  token.focus();
  show(token);
  token.scrollIntoView({ block: "nearest" });
}

answer.addEventListener("mouseover", (e) => { if (!pinned && e.target.closest(".t")) show(e.target.closest(".t")); });
answer.addEventListener("focusin", (e) => show(e.target.closest(".t")));
answer.addEventListener("click", (e) => {
  const token = e.target.closest(".t");
  if (token && pinned === token) { pinned = null; } else { go(token); }
});
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const at = tokens.indexOf(shown), junction = (t) => t.classList.contains("j");
  if (e.key === "ArrowRight") go(tokens[at + 1]);
  else if (e.key === "ArrowLeft" && at > 0) go(tokens[at - 1]);
  else if (e.key === "n") go(tokens.slice(at + 1).find(junction));
  else if (e.key === "p") go(tokens.slice(0, Math.max(at, 0)).reverse().find(junction));
  else if (e.key === "Enter" || e.key === " ") { if (e.target.closest(".t")) go(e.target.closest(".t")); else return; }
  else if (e.key === "Escape") { pinned = null; return; }
  else return;
  e.preventDefault();
});
const first = answer.querySelector(".turned") || answer.querySelector(".j");
if (first && matchMedia("(min-width: 60rem)").matches) show(first);
