// A little Markdown as DOM nodes: paragraphs, headings, lists, quotes, code, emphasis, links.
// Text only ever becomes text nodes, so nothing a model writes is read as HTML. Knows no conversation.

import { copyButton } from "/page/copy.js";

/** Nodes for a text, complete or cut anywhere in the middle. */
export function render(text) {
  const out = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/);
    const heading = line.match(/^(#{1,6})\s+(.*?)\s*#*$/);
    if (fence) {
      const body = [];
      const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      for (at += 1; at < lines.length && !close.test(lines[at]); at += 1) body.push(lines[at]);
      at += 1;
      out.append(codeBlock(body.join("\n"), fence[2]));
    } else if (heading) {
      out.append(element(heading[1].length < 3 ? "h3" : "h4", inline(heading[2])));
      at += 1;
    } else if (/^ {0,3}([-*_])( *\1){2,} *$/.test(line)) {
      out.append(document.createElement("hr"));
      at += 1;
    } else if (/^ {0,3}>/.test(line)) {
      const body = [];
      for (; at < lines.length && /^ {0,3}>/.test(lines[at]); at += 1) body.push(lines[at].replace(/^ {0,3}> ?/, ""));
      out.append(element("blockquote", render(body.join("\n"))));
    } else if (ITEM.test(line)) {
      at = list(lines, at, out);
    } else if (line.trim() === "") {
      at += 1;
    } else {
      const body = [line];
      for (at += 1; at < lines.length && !BREAK.test(lines[at]); at += 1) body.push(lines[at]);
      out.append(element("p", inline(body.join("\n"))));
    }
  }
  return out;
}

const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const BREAK = /^\s*$|^ {0,3}(`{3,}|~{3,}|>|#{1,6}\s)|^ *([-*+]|\d{1,9}[.)])\s+\S/;

/** Append the list that begins at line `at`; deeper items make nested lists. Returns the line after it. */
function list(lines, at, out) {
  const [, indent, marker] = lines[at].match(ITEM);
  const node = document.createElement(/\d/.test(marker) ? "ol" : "ul");
  if (/\d/.test(marker)) node.start = parseInt(marker, 10);
  let item = null;
  while (at < lines.length) {
    const found = lines[at].match(ITEM);
    if (found && found[1].length > indent.length && item) {
      at = list(lines, at, item);
    } else if (found && found[1].length === indent.length && /\d/.test(found[2]) === /\d/.test(marker)) {
      item = element("li", inline(found[3]));
      node.append(item);
      at += 1;
    } else if (!found && lines[at].trim() === "" && ITEM.test(lines[at + 1] ?? "")) {
      at += 1;
    } else if (!found && item && /^\s+\S/.test(lines[at])) {
      item.append("\n", inline(lines[at].trim()));
      at += 1;
    } else {
      break;
    }
  }
  out.append(node);
  return at;
}

const SPANS = [
  [/`([^`\n]+)`/, (m) => element("code", m[1])],
  [/\*\*(?=\S)([^]+?\S)\*\*/, (m) => element("strong", inline(m[1]))],
  [/(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?!\*)/, (m) => element("em", inline(m[1]))],
  [/(?<!\w)_(?=[^\s_])([^_\n]*[^\s_])_(?!\w)/, (m) => element("em", inline(m[1]))],
  [/\[([^\]\n]+)\]\((https?:\/\/[^\s()]+)\)/, (m) => link(m[1], m[2])],
];

/** Emphasis, code and links inside a paragraph. */
function inline(text) {
  const out = document.createDocumentFragment();
  while (text) {
    let first = null;
    for (const [pattern, make] of SPANS) {
      const match = text.match(pattern);
      if (match && (!first || match.index < first.match.index)) first = { match, make };
    }
    if (!first) break;
    const { match, make } = first;
    out.append(text.slice(0, match.index), make(match));
    text = text.slice(match.index + match[0].length);
  }
  out.append(text);
  return out;
}

function link(label, address) {
  const node = element("a", label);
  node.href = address;
  node.rel = "noopener noreferrer nofollow";
  node.target = "_blank";
  return node;
}

function codeBlock(code, language) {
  const node = element("div");
  node.className = "code";
  const head = element("div", element("span", language || "text"), copyButton(() => code));
  head.className = "head";
  node.append(head, element("pre", element("code", code)));
  return node;
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}
