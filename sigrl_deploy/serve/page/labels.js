// Labels of the user's own, one a line. Those that were copied from a vocabulary keep what its label set says of them.

const $ = (id) => document.getElementById(id);
const isTag = (label) => label.emit !== false;
const offers = (background) => [...$("background").options].some(({ value }) => value === background);

let copied = null; // a vocabulary with its label set, as the service shows it

// What stands in the form, as a label set of the service's interface; null where there are no labels.
export function ownLabels() {
  const { labels = [], templates } = copied?.label_set ?? {};
  const known = new Map(labels.filter(isTag).map((label) => [label.name, label]));
  const lines = $("labels").value.split("\n").map((line) => line.trim());
  const names = [...new Set(lines)].filter((line) => line && (!line.startsWith("#") || known.has(line)));
  if (names.length === 0) return null;
  const found = { labels: names.map((name) => known.get(name) ?? name) };
  if (names.some((name) => known.has(name))) {
    found.labels.push(...labels.filter((label) => !isTag(label) && !names.includes(label.name)));
    if (templates) found.templates = templates;
  }
  if ($("background").value) found.background = $("background").value;
  return found;
}

export const hasThresholds = (set) => Boolean(set?.labels.some((label) => typeof label.threshold === "number"));
export const countTags = (set) => set?.labels.filter(isTag).length ?? 0;

export function copyLabels(vocabulary) {
  copied = vocabulary;
  const { labels, background = "" } = vocabulary.label_set;
  $("labels").value = labels.filter(isTag).map((label) => label.name).join("\n");
  if (background === "bundle" && !offers(background)) $("background").add(new Option("the bundle’s own labels", background));
  $("background").value = offers(background) ? background : "";
}

// What becomes of all that cannot be seen in the form, in words.
export function aboutCopy(set) {
  const known = new Set(copied?.label_set.labels);
  if (!set?.labels.some((label) => known.has(label))) return "";
  const { name, thresholds, label_set: { background = "" } } = copied;
  const said = [];
  const silent = set.labels.length - countTags(set);
  if (set.templates || set.labels.some((label) => Object.keys(label).length > 1 && isTag(label)))
    said.push("Lines that you leave as they are keep their synonyms, parents, thresholds and templates.");
  if (silent) said.push(`${silent} more labels of ${name} are compared with, and never become tags.`);
  if (thresholds && !hasThresholds(copied.label_set)) said.push(`The thresholds of ${name} are not copied.`);
  if (!offers(background))
    said.push(`${name} is compared with labels of another file, which are not copied.`);
  return said.join(" ");
}
