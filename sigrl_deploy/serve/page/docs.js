// The service's interface, drawn from its OpenAPI document.

import { onKey } from "./key.js";
import { call } from "./service.js";

const FILES = ["cat.jpg", "cup.jpg"]; // in commands

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.flat());
  return element;
}

const code = (text) => make("code", {}, text);
const prose = (text = "") => text.split("`").map((part, i) => (i % 2 ? code(part) : part));
const between = (parts, separator) => parts.flatMap((part, i) => (i ? [separator, ...part] : part));
const nameOf = ({ $ref }) => $ref.split("/").pop();

// Schemas

function typeOf(schema) {
  if (schema.$ref) return [make("a", { href: `#${nameOf(schema)}` }, nameOf(schema))];
  if (schema.anyOf) return between(schema.anyOf.map(typeOf), " or ");
  if (schema.enum) return between(schema.enum.map((value) => [code(JSON.stringify(value))]), " or ");
  if (schema.type === "array") return ["array of ", ...typeOf(schema.items)];
  if (schema.format === "binary") return ["file"];
  const range = schema.minimum === undefined ? "" : ` from ${schema.minimum} to ${schema.maximum}`;
  return [schema.type + range];
}

function field(name, schema, required, description = schema.description) {
  const title = make("dt", {}, code(name), ", ", typeOf(schema));
  if (required) title.append(", required");
  else if ((schema.default ?? null) !== null) title.append(", by default ", code(JSON.stringify(schema.default)));
  return [title, make("dd", {}, prose(description))];
}

function fields({ properties, required = [] }) {
  return make("dl", {}, Object.entries(properties).flatMap(([name, schema]) => field(name, schema, required.includes(name))));
}

function record([name, schema]) {
  const about = make("p", {}, prose(schema.description));
  const section = make("section", { className: "panel" }, make("h3", { id: name }, name), about);
  section.append(schema.properties ? fields(schema) : make("p", {}, typeOf(schema)));
  return section;
}

// Requests

function bodies(content) {
  return Object.entries(content).flatMap(([type, { schema }]) => [
    make("dt", {}, code(type), ", ", schema.properties ? "a form:" : typeOf(schema)),
    make("dd", {}, schema.properties ? fields(schema) : ""),
  ]);
}

function answers(responses) {
  return Object.entries(responses).flatMap(([status, { description, content = {}, headers = {} }]) => {
    const types = Object.entries(content).flatMap(([type, { schema }]) =>
      [", ", ...(type === "application/json" ? typeOf(schema) : [code(type)])]);
    const sent = Object.keys(headers).flatMap((name) => [", with ", code(name)]);
    return [make("dt", {}, code(status), types, sent), make("dd", {}, prose(description))];
  });
}

function command(method, path, { parameters = [], requestBody }, secured) {
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => parameters.find((each) => each.name === name).example);
  const address = new URL(`.${filled}`, document.baseURI);
  const words = ["curl"];
  if (method === "PUT" || method === "DELETE") words.push("-X", method);
  if (secured) words.push("-H", '"Authorization: Bearer $KEY"');
  const [type, { schema, example }] = Object.entries(requestBody?.content ?? {})[0] ?? ["", {}];
  if (type === "image/*") {
    words.push("-H", "'Content-Type: image/jpeg'", "--data-binary", `@${FILES[0]}`);
    for (const each of parameters) if (each.example !== undefined) address.searchParams.set(each.name, each.example);
  }
  if (type === "multipart/form-data") words.push(...FILES.flatMap((file) => ["-F", `${schema.required[0]}=@${file}`]));
  if (type === "application/json") words.push("-H", "'Content-Type: application/json'", "-d", `'${JSON.stringify(example)}'`);
  return [...words, `'${address}'`].join(" ");
}

async function copy(line, button) {
  getSelection().selectAllChildren(line);
  // Browsers have no clipboard where the address is neither https nor this machine.
  const copied = await navigator.clipboard?.writeText(line.textContent).then(() => true, () => false);
  button.textContent = copied ? "Copied" : "Selected";
}

function request({ method, path, operation }, secured) {
  const title = `${method} ${path}`;
  const line = make("pre", {}, command(method, path, operation, secured && operation.security?.length !== 0));
  const button = make("button", { type: "button", ariaLabel: `Copy the command for ${title}` }, "Copy");
  button.addEventListener("click", () => copy(line, button));
  const heading = make("h2", { id: operation.operationId }, code(title));
  const section = make("section", { className: "panel" }, heading, make("p", {}, operation.summary));
  if (operation.description) section.append(make("p", {}, prose(operation.description)));
  section.append(make("div", { className: "command" }, line, button));
  const add = (part, items) => section.append(make("h3", {}, part), make("dl", {}, items));
  const { parameters, requestBody, responses } = operation;
  if (parameters) {
    add("In the address", parameters.flatMap(({ name, schema, content, required, description }) =>
      field(name, schema ?? content["application/json"].schema, required, description)));
  }
  if (requestBody) add(Object.keys(requestBody.content).length > 1 ? "Body, one of" : "Body", bodies(requestBody.content));
  add("Answers", answers(responses));
  return section;
}

function draw(described) {
  const { info, paths, components, security } = described;
  const requests = Object.entries(paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => ({ method: method.toUpperCase(), path, operation })));
  $("about").textContent = `${info.title} ${info.version}. ${info.description}`;
  $("contents").replaceChildren(...requests.map(({ method, path, operation }) =>
    make("li", {}, make("a", { href: `#${operation.operationId}` }, code(`${method} ${path}`)), ` ${operation.summary}`)));
  $("requests").replaceChildren(...requests.map((each) => request(each, Boolean(security))));
  $("records").replaceChildren(...Object.entries(components.schemas).map(record));
  // A link to the document itself would send no key.
  $("download").href = URL.createObjectURL(new Blob([JSON.stringify(described, null, 2)], { type: "application/json" }));
  $("interface").hidden = $("download").hidden = false;
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

async function start() {
  let problem = "";
  try {
    draw(await call("openapi.json"));
  } catch (error) {
    if ($("key").hidden) problem = `${error.message} Reload the page to try again.`;
  }
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

onKey(start);
start();
