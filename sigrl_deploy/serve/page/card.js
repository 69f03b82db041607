// One picture with its tags. What comes from files or from the service becomes text, never markup.

import { service, tagsOf } from "./service.js";

export const TAGS = 20; // asked for of each picture; the slider chooses among them

// The service calls what it was sent a picture, whatever it is.
const described = (error) => error.message.replace(/^picture: /, "The file ");

export class Card {
  // `question` gives what to ask the service for, `slider` which scores are shown; the page is told of what changes.
  constructor(file, { question, slider, changed, removed }) {
    Object.assign(this, { file, question, slider, changed });
    this.root = document.getElementById("card").content.firstElementChild.cloneNode(true);
    const part = (selector) => this.root.querySelector(selector);
    [this.view, this.picture, this.map, this.said, this.list, this.again] =
      [".view", ".picture", ".map", ".said", "ul", ".again"].map(part);
    const title = part("h3");
    title.textContent = file.name;
    title.tabIndex = -1;
    this.picture.alt = `The picture ${file.name}`;
    this.picture.addEventListener("error", () => { this.picture.hidden = true; part(".unseen").hidden = false; });
    this.picture.src = URL.createObjectURL(file);
    this.again.addEventListener("click", () => { title.focus(); this.tag(); });
    part(".remove").setAttribute("aria-label", `Remove ${file.name}`);
    part(".remove").addEventListener("click", () => removed(this));
    for (const event of ["pointerenter", "focusin"]) this.root.addEventListener(event, () => this.loadMaps());
    this.root.addEventListener("keydown", (event) => { if (event.key === "Escape") this.look({ pinned: null, at: null }); });
  }

  async tag() {
    this.abort?.abort();
    const { signal } = this.abort = new AbortController();
    Object.assign(this, { tags: null, maps: new Map(), mapped: 0, error: null, note: "", pinned: null, at: null });
    this.list.replaceChildren();
    this.view.removeAttribute("aria-busy");
    this.changed();
    try {
      this.asked = await this.question();
      signal.throwIfAborted();
      this.tags = (await tagsOf(this.file, { ...this.asked, top: TAGS }, signal)).tags;
      this.list.replaceChildren(...this.tags.map((tag) => this.item(tag)));
    } catch (error) {
      if (signal.aborted) return;
      this.error = error;
    }
    this.changed();
    await null; // until the page shows what came
    if (this.root.matches(":hover, :focus-within")) this.loadMaps();
  }

  item(tag) {
    const item = document.createElement("li");
    const button = document.createElement(service.heatmaps ? "button" : "div");
    const name = document.createElement("span");
    const score = document.createElement("span");
    name.textContent = tag.child ? `${tag.label} (${tag.child})` : tag.label;
    score.className = "score";
    button.className = "tag";
    button.append(name, " ", score);
    item.append(button);
    Object.assign(tag, { item, button, scoreText: score });
    if (!service.heatmaps) return item;
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("pointerenter", () => this.look({ at: tag }));
    button.addEventListener("pointerleave", () => this.look({ at: null }));
    // A button that was touched keeps the focus, which must not keep its map in view.
    button.addEventListener("focus", () => { if (button.matches(":focus-visible")) this.look({ at: tag }); });
    button.addEventListener("blur", () => this.look({ at: null }));
    button.addEventListener("click", () => this.look({ pinned: this.pinned === tag ? null : tag }));
    return item;
  }

  // Asks for the maps of the tags in view; drawing one takes the service longer than scoring.
  async loadMaps() {
    const { tags, asked, abort: { signal } } = this;
    const wanted = tags?.filter((tag) => !tag.item.hidden).length ?? 0;
    if (!service.heatmaps || wanted <= this.mapped) return;
    this.mapped = wanted;
    this.view.setAttribute("aria-busy", "true");
    try {
      const answer = await tagsOf(this.file, { ...asked, top: wanted, heatmaps: true }, signal);
      if (signal.aborted) return;
      if (wanted === this.mapped) this.maps = new Map(answer.tags.map((tag) => [tag.label, tag.heatmap]));
    } catch (error) {
      if (signal.aborted) return;
      this.mapped = 0;
      this.note = `No heat maps: ${error.message}`;
    }
    if (wanted >= this.mapped) this.view.removeAttribute("aria-busy");
    this.changed();
  }

  // Shows the heat map of the tag that is pointed at or has the focus, or else of the one that was pressed.
  look(change) {
    if (!service.heatmaps) return;
    Object.assign(this, change);
    const tag = this.at ?? this.pinned;
    const source = tag && !tag.item.hidden ? this.maps.get(tag.label) : undefined;
    this.map.hidden = source === undefined;
    if (source !== undefined) {
      this.map.src = source;
      this.map.alt = `Where “${tag.label}” was found in ${this.file.name}`;
    }
    for (const each of this.tags ?? []) each.button.setAttribute("aria-pressed", String(each === this.pinned));
  }

  // `asked` is what the service would be asked for now, as JSON.
  draw(asked) {
    this.stale = Boolean(this.tags) && JSON.stringify(this.asked) !== asked;
    this.root.classList.toggle("stale", this.stale);
    this.again.hidden = !this.error || Boolean(this.error.lasting);
    this.said.classList.toggle("wrong", Boolean(this.error));
    this.said.textContent = this.error ? described(this.error) : "Being tagged …";
    if (!this.tags) return;
    const best = Math.max(...this.tags.map((tag) => tag.score), 0);
    for (const tag of this.tags) {
      tag.item.hidden = tag.score < this.slider.value;
      tag.scoreText.textContent = tag.score.toFixed(this.slider.digits);
      tag.button.style.setProperty("--share", `${(100 * Math.max(tag.score, 0)) / (best || 1)}%`);
    }
    const stale = this.stale ? "By other labels than those above. " : "";
    this.said.textContent = stale + (this.none() ?? this.note);
    this.look({});
  }

  // Why no tag is in view; undefined where one is.
  none() {
    if (this.tags.length === 0) return "No label reaches its threshold.";
    const { label, score } = this.tags[0];
    if (score >= this.slider.value) return undefined;
    return `No tag has this score. “${label}” comes nearest, with ${score.toFixed(this.slider.digits)}.`;
  }
}
