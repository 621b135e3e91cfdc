/** The languages that answers are coloured in; a chunk of its own. */

import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import markdown from "highlight.js/lib/languages/markdown";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { createLowlight } from "lowlight";

const colours = createLowlight({
  ...{ bash, c, cpp, css, diff, go, java, javascript },
  ...{ json, markdown, python, rust, sql, typescript, xml, yaml },
});

/** The pieces of `text`, or undefined if the language is not one of these. */
export function tree(text: string, language: string) {
  return colours.registered(language) ? colours.highlight(language, text).children : undefined;
}
