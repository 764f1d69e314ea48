// The OpenAPI document, readable: operations, bodies, answers. No external viewer, so it works offline.

const box = document.getElementById("operations");

function element(tag, text) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text.replaceAll("`", "");
  return node;
}

function sample(schema, all, depth = 0) {
  if (!schema || depth > 6) return null;
  if (schema.$ref) return sample(all[schema.$ref.split("/").at(-1)], all, depth + 1);
  const choice = schema.anyOf ?? schema.oneOf;
  if (choice) return sample(choice.find((s) => s.type !== "null"), all, depth + 1);
  if (schema.type === "object" || schema.properties) {
    return Object.fromEntries(Object.entries(schema.properties ?? {}).map(([k, v]) => [k, sample(v, all, depth + 1)]));
  }
  if (schema.type === "array") return [sample(schema.items, all, depth + 1)];
  return { string: "…", integer: 0, number: 0.5, boolean: true }[schema.type] ?? null;
}

function fields(schema, all) {
  if (schema?.$ref) schema = all[schema.$ref.split("/").at(-1)];
  const list = element("ul");
  for (const [name, field] of Object.entries(schema?.properties ?? {})) {
    if (!field.description) continue;
    const item = element("li");
    item.append(element("code", name), `: ${field.description}`);
    list.append(item);
  }
  return list;
}

function operation(method, path, details, all) {
  const article = element("article");
  article.append(element("h3", `${method.toUpperCase()} ${path}`), element("p", details.summary));
  if (details.description) article.append(element("p", details.description));
  for (const [type, content] of Object.entries(details.requestBody?.content ?? {})) {
    article.append(element("h4", `Body: ${type}`));
    const schemas = content.schema.anyOf ?? [content.schema];
    const example = content.example ?? sample(schemas[0], all);
    article.append(element("pre", typeof example === "string" ? example : JSON.stringify(example, null, 1)));
    article.append(...schemas.map((schema) => fields(schema, all)));
  }
  const answers = element("ul");
  for (const [status, answer] of Object.entries(details.responses ?? {})) answers.append(element("li", `${status}: ${answer.description}`));
  article.append(element("h4", "Answers"), answers);
  return article;
}

try {
  const api = await (await fetch("/openapi.json")).json();
  const all = api.components?.schemas ?? {};
  box.replaceChildren(...Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, details]) => operation(method, path, details, all))));
} catch {
  box.replaceChildren(element("p", "The description could not be loaded."));
}
box.removeAttribute("aria-busy");
