// The OpenAPI document, readable: operations, bodies, answers. No external viewer, so it works offline.

const box = document.getElementById("operations"), contents = document.getElementById("contents");

function element(tag, text) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text.replaceAll("`", "");
  return node;
}

function fields(schema, all) {
  if (schema?.$ref) schema = all[schema.$ref.split("/").at(-1)];
  const rows = Object.entries(schema?.properties ?? {}).filter(([, field]) => field.description);
  return pairs(rows.map(([name, field]) => [name, field.description]));
}

function pairs(rows) {
  const list = element("dl");
  for (const [name, text] of rows) {
    const term = element("dt"), row = element("div");
    term.append(element("code", name));
    row.append(term, element("dd", text));
    list.append(row);
  }
  return list;
}

// A form is no JSON: one line a part, as curl's -F takes them.
function formLines(schema) {
  return Object.entries(schema.properties).map(([name, field]) =>
    field.format === "binary" ? `${name}=@FILE` : `${name}=${field.description ?? (field.type === "integer" ? "NUMBER" : "TEXT")}`).join("\n");
}

function operation(method, path, details, components) {
  const all = components.schemas;
  // Bodies and answers of several operations are described once.
  const shared = (value, kind) => (value?.$ref ? components[kind][value.$ref.split("/").at(-1)] : value);
  const article = element("article");
  const title = element("h3");
  title.append(element("b", method.toUpperCase()), ` ${path}`);
  article.id = `${method}${path.replaceAll(/[^\w]+/g, "-")}`;
  article.append(title, element("p", details.summary));
  if (details.description) article.append(element("p", details.description));
  for (const [type, content] of Object.entries(shared(details.requestBody, "requestBodies")?.content ?? {})) {
    article.append(element("h4", `Body: ${type}`));
    const schemas = content.schema.anyOf ?? content.schema.oneOf ?? [content.schema];
    if (type === "multipart/form-data") {
      for (const schema of schemas) {
        if (schema.description) article.append(element("p", schema.description));
        article.append(element("pre", formLines(schema)));
      }
      continue;
    }
    const { example } = content;
    article.append(element("pre", typeof example === "string" ? example : JSON.stringify(example, null, 1)));
    article.append(...schemas.map((schema) => fields(schema, all)));
  }
  const answers = Object.entries(details.responses ?? {}).map(([status, answer]) => [status, shared(answer, "responses").description]);
  article.append(element("h4", "Answers"), pairs(answers));
  return article;
}

function entry(article) {
  const item = element("li"), link = element("a", article.querySelector("h3").textContent);
  link.href = `#${article.id}`;
  item.append(link, ` ${article.querySelector("p").textContent}`);
  return item;
}

try {
  const api = await (await fetch("openapi.json")).json();
  const articles = Object.entries(api.paths).flatMap(([path, methods]) =>
    // HEAD is as GET, without the body.
    Object.entries(methods).filter(([method]) => method !== "head").map(([method, details]) => operation(method, path, details, api.components)));
  contents.replaceChildren(...articles.map(entry));
  box.replaceChildren(...articles);
} catch {
  box.replaceChildren(element("p", "The description could not be loaded."));
}
box.removeAttribute("aria-busy");
