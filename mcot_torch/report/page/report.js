"use strict";
const root = document.documentElement;
const content = JSON.parse(document.getElementById("data").textContent);

/* ---- light and dark ---- */
const dark = matchMedia("(prefers-color-scheme: dark)");
const toggle = document.getElementById("theme");
const printing = () => root.classList.contains("paper"); // a sheet is 760 pixels wide, whatever the window is
const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
function retheme(theme) {
  if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
  toggle.textContent = isDark() ? "Light" : "Dark";
  drawAll();
}
toggle.addEventListener("click", () => retheme(isDark() ? "light" : "dark"));
dark.addEventListener("change", () => retheme(root.dataset.theme));

/* ---- charts: "@name" and "@name/0.2" stand for the page's colours ---- */
const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);
function colour(token) {
  const [name, opacity] = token.slice(1).split("/");
  probe.style.color = `var(--${name})`;
  const channels = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3);
  return `rgba(${channels.join(",")},${opacity || 1})`;
}
function resolved(value) {
  if (typeof value === "string") return /^@[a-z]/.test(value) ? colour(value) : value;
  if (Array.isArray(value)) return value.every((v) => typeof v === "number") ? value : value.map(resolved);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolved(inner)]));
}
function merged(base, over) {
  const out = { ...base };
  for (const [key, value] of Object.entries(over)) {
    const both = value && base[key] && typeof value === "object" && !Array.isArray(value);
    out[key] = both ? merged(base[key], value) : value;
  }
  return out;
}
const axis = {
  gridcolor: "@grid", linecolor: "@rule", tickcolor: "@rule", ticks: "outside", ticklen: 4, zeroline: false,
  automargin: true, fixedrange: true, tickfont: { size: 12, color: "@muted" }, title: { font: { size: 13, color: "@ink" }, standoff: 8 },
};
const common = {
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
  font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "@ink" },
  margin: { l: 8, r: 12, t: 30, b: 8 }, xaxis: axis, yaxis: axis,
  legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", itemwidth: 30 },
  hoverlabel: { bgcolor: "@ink", bordercolor: "@ink", font: { color: "@paper", size: 13 }, align: "left" },
};
function drawAll() {
  for (const [id, chart] of Object.entries(content.charts)) {
    const layout = resolved(merged(common, chart.layout)), place = document.getElementById(id);
    if (printing()) Object.assign(layout, { width: place.clientWidth, height: place.clientHeight });
    Plotly.react(id, resolved(chart.data), layout, { displayModeBar: false, responsive: !printing() });
  }
}
let before;
addEventListener("beforeprint", () => {
  before = root.dataset.theme;
  root.classList.add("paper");
  document.querySelectorAll("details:not(.long)").forEach((d) => { d.open = true; });
  retheme("light");
});
addEventListener("afterprint", () => {
  root.classList.remove("paper");
  retheme(before);
});
retheme();

/* ---- texts on hover, or on a tap ---- */
const tip = document.getElementById("tip");
function show(event) {
  const part = event.target.closest && event.target.closest("[data-t]");
  tip.hidden = !part;
  if (!part) return;
  tip.textContent = part.dataset.t;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const y = event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${y}px`;
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

/* ---- the player ---- */
const player = document.getElementById("player");
if (player && content.player) {
  const { thoughts, states, clusters, radius, dot } = content.player;
  const $ = (name) => player.querySelector(name);
  const slider = $("input"), play = $(".play"), lane = $(".lane");
  const svg = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const low = (k) => String(k).replace(/\d/g, (d) => "₀₁₂₃₄₅₆₇₈₉"[d]);
  let thought = thoughts[0], frame = 0, timer = 0;
  const place = (i) => (thought.level === "cluster" ? clusters[thought.at[i]] : states[thought.at[i]]);
  const clusterOf = (i) => (thought.level === "cluster" ? thought.at[i] : states[thought.at[i]][2]);
  const left = 44, width = 760, height = lane.viewBox.baseVal.height, gap = height - 26;
  const laneX = (t) => left + (width - left - 6) * t / Math.max(1, thought.times.at(-1));
  const laneY = (k) => 8 + gap * k / Math.max(1, clusters.length - 1);

  function drawLane() {
    lane.replaceChildren();
    const every = Math.ceil(clusters.length / (innerWidth < 560 ? 5 : 10));
    clusters.forEach((_, k) => {
      if (k % every) return;
      lane.append(svg("line", { class: "row", x1: left, x2: width - 6, y1: laneY(k), y2: laneY(k) }));
      const name = svg("text", { x: 0, y: laneY(k) + 4 });
      name.textContent = `C${low(k)}`;
      lane.append(name);
    });
    let d = "", last = null;
    thought.times.forEach((t, i) => {
      const k = clusterOf(i);
      if (k !== last || i === thought.times.length - 1) {
        d += last === null ? `M${laneX(t)} ${laneY(k)}` : `H${laneX(t)}V${laneY(k)}`;
        last = k;
      }
    });
    lane.append(svg("path", { class: "walk", d }), svg("line", { class: "cursor", y1: 0, y2: gap + 16 }));
    const end = svg("text", { x: width - 6, y: height - 1, "text-anchor": "end" });
    end.textContent = `${thought.unit}s`;
    lane.append(end);
  }

  function draw() {
    const [x, y] = place(frame), k = clusterOf(frame), t = thought.times[frame];
    const stateLevel = thought.level === "state";
    const points = [];
    for (let i = frame; i >= 0 && frame - i < (stateLevel ? 16 : 400); i--) {
      points.push(place(i).slice(0, 2).join(","));
      if (i && thought.times[i] - thought.times[i - 1] > 1) break;
    }
    $(".trail").setAttribute("points", points.join(" "));
    $(".cell").setAttribute("cx", clusters[k][0]);
    $(".cell").setAttribute("cy", clusters[k][1]);
    $(".here").setAttribute("cx", x);
    $(".here").setAttribute("cy", y);
    const cursor = lane.querySelector(".cursor");
    cursor.setAttribute("x1", laneX(t));
    cursor.setAttribute("x2", laneX(t));
    const what = stateLevel ? `state ${states[thought.at[frame]][3]} in C${low(k)}` : `cluster C${low(k)}`;
    const end = frame === thought.at.length - 1 ? (thought.arrived ? ", the goal" : ", given up here") : "";
    const unit = thought.unit[0].toUpperCase() + thought.unit.slice(1);
    $(".now").textContent = `${unit} ${t.toLocaleString("en")} of ${thought.times.at(-1).toLocaleString("en")}: ${what}${end}. ${thought.note}`;
    slider.value = frame;
    slider.setAttribute("aria-valuetext", $(".now").textContent);
  }

  function go(to) {
    frame = Math.max(0, Math.min(thought.at.length - 1, to));
    draw();
  }
  function pause() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }
  function start() {
    if (frame === thought.at.length - 1) frame = 0;
    const speed = Number($(".speed").value);
    const rate = Math.max(1.5, thought.at.length / 24) * speed;
    const stride = Math.ceil(rate / 40);
    play.textContent = "Pause";
    timer = setInterval(() => {
      go(frame + stride);
      if (frame === thought.at.length - 1) pause();
    }, 1000 * stride / rate);
  }
  function choose(i) {
    pause();
    thought = thoughts[i];
    player.style.setProperty("--c", `var(--${thought.colour})`);
    player.querySelectorAll(".tabs button").forEach((b, j) => {
      b.setAttribute("aria-checked", String(i === j));
      b.tabIndex = i === j ? 0 : -1;
    });
    slider.max = thought.at.length - 1;
    $(".here").setAttribute("r", thought.level === "cluster" ? Math.max(7, 0.3 * radius) : Math.max(7, dot));
    drawLane();
    go(0);
  }

  player.querySelectorAll(".tabs button").forEach((button, i, all) => {
    button.addEventListener("click", () => choose(i));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (i + step + all.length) % all.length;
      choose(next);
      all[next].focus();
    });
  });
  play.addEventListener("click", () => (timer ? pause() : start()));
  $(".back").addEventListener("click", () => { pause(); go(frame - 1); });
  $(".forth").addEventListener("click", () => { pause(); go(frame + 1); });
  $(".speed").addEventListener("change", () => { if (timer) { pause(); start(); } });
  slider.addEventListener("input", () => { pause(); go(Number(slider.value)); });
  lane.addEventListener("pointerdown", (event) => {
    const at = lane.getScreenCTM().inverse();
    const t = ((event.clientX * at.a + at.e - left) / (width - left - 6)) * thought.times.at(-1);
    pause();
    const after = thought.times.findIndex((u) => u >= t);
    go(after < 0 ? thought.times.length - 1 : after);
  });
  $(".cell").setAttribute("r", radius);
  choose(0);
}
