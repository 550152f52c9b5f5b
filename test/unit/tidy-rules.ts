/** Rules about the project's own text. Each is a function of what it looks at, so that a bad sample can prove it. */
import * as path from 'node:path';
import * as ts from 'typescript';

/** A file of the project: its path from the top, with `/`, and its text. */
export interface SourceText {
  path: string;
  text: string;
}

/** Imports go to the right only. */
export const LAYERS = [
  'cli',
  'daemon',
  'fuse',
  'vfs',
  'block',
  'cluster',
  'formats',
  'storage',
  'shared',
  'system',
] as const;

/** What everybody may import. */
const COMMON = new Set(['src/errors.ts', 'src/units.ts', 'src/log.ts']);

const MAX_LINES = 400;

/** Where 32-bit operators are right: codecs of fixed-width fields, flag words, lock words. Never on offsets. */
const BIT_FILES = [
  /^src\/fuse\/kernel\//,
  /^src\/system\//,
  /^src\/shared\//,
  /^src\/formats\/[a-z0-9]+\/([a-z-]*(header|codec)|entry|features|create|cluster-bitmap)\.ts$/,
  /^src\/vfs\/tree\.ts$/, // permission words
];

export interface Import {
  specifier: string;
  typeOnly: boolean;
}

const parsed = new WeakMap<SourceText, ts.SourceFile>();

function parse(file: SourceText): ts.SourceFile {
  const known = parsed.get(file);
  if (known !== undefined) return known;
  const fresh = ts.createSourceFile(file.path, file.text, ts.ScriptTarget.ES2022, true);
  parsed.set(file, fresh);
  return fresh;
}

function walk(node: ts.Node, visit: (node: ts.Node) => void): void {
  visit(node);
  node.forEachChild((child) => walk(child, visit));
}

function lineOf(source: ts.SourceFile, node: ts.Node): number {
  return source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1;
}

/** Static imports, re-exports, `import()` and `require()`; also types named as `import('x').Y`. */
export function importsOf(file: SourceText): Import[] {
  const found: Import[] = [];
  walk(parse(file), (node) => {
    if ((ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) && node.moduleSpecifier !== undefined) {
      const typeOnly = ts.isImportDeclaration(node) ? node.importClause?.isTypeOnly === true : node.isTypeOnly;
      found.push({ specifier: (node.moduleSpecifier as ts.StringLiteral).text, typeOnly });
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      found.push({ specifier: (node.argument.literal as ts.StringLiteral).text, typeOnly: true });
    } else if (ts.isCallExpression(node) && node.arguments.length > 0 && ts.isStringLiteral(node.arguments[0])) {
      const callee = node.expression;
      const isRequire =
        (ts.isIdentifier(callee) && callee.text === 'require') || callee.kind === ts.SyntaxKind.ImportKeyword;
      if (isRequire) found.push({ specifier: node.arguments[0].text, typeOnly: false });
    }
  });
  return found;
}

/** `src/x/y.ts` for a relative specifier, undefined for a package. */
function resolveImport(from: string, specifier: string, known: ReadonlySet<string>): string | undefined {
  if (!specifier.startsWith('.')) return undefined;
  const base = path.posix.normalize(path.posix.join(path.posix.dirname(from), specifier)).replace(/\.js$/, '');
  return [`${base}.ts`, `${base}/index.ts`].find((candidate) => known.has(candidate)) ?? `${base}.ts`;
}

function layerOf(file: string): number {
  return LAYERS.indexOf(file.split('/')[1] as (typeof LAYERS)[number]);
}

/** Breaches of the order of layers, and of who may use which native package. */
export function layering(files: SourceText[]): string[] {
  const known = new Set(files.map((file) => file.path));
  const breaches: string[] = [];
  for (const file of files) {
    const own = layerOf(file.path);
    if (own < 0 && !COMMON.has(file.path)) breaches.push(`${file.path}: lies in no known layer`);
    for (const { specifier } of importsOf(file)) {
      if (specifier === 'koffi' && !file.path.startsWith('src/system/')) {
        breaches.push(`${file.path}: only src/system may import koffi`);
      }
      if (specifier === 'fuse-native' && !file.path.startsWith('src/fuse/native/')) {
        breaches.push(`${file.path}: only src/fuse/native may import fuse-native`);
      }
      const target = resolveImport(file.path, specifier, known);
      if (target === undefined || COMMON.has(target)) continue;
      const other = layerOf(target);
      if (COMMON.has(file.path)) breaches.push(`${file.path}: imports ${target}, but is imported by every layer`);
      else if (other < own) breaches.push(`${file.path}: imports ${target}, which is to the left of it`);
    }
  }
  return breaches;
}

/** Circles of imports, each written as `a.ts > b.ts > a.ts`. Types count too: a circle of types is two things in one. */
export function importCycles(files: SourceText[]): string[] {
  const known = new Set(files.map((file) => file.path));
  const edges = new Map<string, string[]>();
  for (const file of files) {
    const targets = importsOf(file)
      .map(({ specifier }) => resolveImport(file.path, specifier, known))
      .filter((target): target is string => target !== undefined && known.has(target));
    edges.set(file.path, [...new Set(targets)]);
  }
  const cycles = new Set<string>();
  const done = new Set<string>();
  const visit = (file: string, trail: string[]) => {
    const at = trail.indexOf(file);
    if (at >= 0) {
      const circle = trail.slice(at);
      const first = circle.indexOf([...circle].sort()[0]);
      const turned = [...circle.slice(first), ...circle.slice(0, first)];
      cycles.add([...turned, turned[0]].join(' > '));
      return;
    }
    if (done.has(file)) return;
    for (const target of edges.get(file) ?? []) visit(target, [...trail, file]);
    done.add(file);
  };
  for (const file of edges.keys()) visit(file, []);
  return [...cycles];
}

export function tooLong(files: SourceText[]): string[] {
  return files
    .map((file) => ({ path: file.path, lines: file.text.trimEnd().split('\n').length }))
    .filter(({ lines }) => lines > MAX_LINES)
    .map(({ path: name, lines }) => `${name}: ${lines} lines, allowed are ${MAX_LINES}`);
}

/** Unfinished work, tests that switch others off, and types that switch the checker off. */
export function marks(file: SourceText): string[] {
  const found: string[] = [];
  const source = parse(file);
  walk(source, (node) => {
    if (node.kind === ts.SyntaxKind.AnyKeyword) found.push(`${file.path}:${lineOf(source, node)}: any`);
    const isSwitch = ts.isCallExpression(node) && ts.isPropertyAccessExpression(node.expression);
    if (isSwitch && /^(only|skip)$/.test((node.expression as ts.PropertyAccessExpression).name.text)) {
      found.push(`${file.path}:${lineOf(source, node)}: a test that is switched off or runs alone`);
    }
  });
  for (const [index, line] of file.text.split('\n').entries()) {
    const word = /\b(TO{1}DO|FIX{1}ME|X{3})\b|@ts-(ignore|nocheck)/.exec(line);
    if (word) found.push(`${file.path}:${index + 1}: ${word[0]}`);
  }
  return found;
}

const BIT_TOKENS = new Set([
  ts.SyntaxKind.AmpersandToken,
  ts.SyntaxKind.BarToken,
  ts.SyntaxKind.CaretToken,
  ts.SyntaxKind.TildeToken,
  ts.SyntaxKind.LessThanLessThanToken,
  ts.SyntaxKind.GreaterThanGreaterThanToken,
  ts.SyntaxKind.GreaterThanGreaterThanGreaterThanToken,
  ts.SyntaxKind.AmpersandEqualsToken,
  ts.SyntaxKind.BarEqualsToken,
  ts.SyntaxKind.CaretEqualsToken,
  ts.SyntaxKind.LessThanLessThanEqualsToken,
  ts.SyntaxKind.GreaterThanGreaterThanEqualsToken,
  ts.SyntaxKind.GreaterThanGreaterThanGreaterThanEqualsToken,
]);

/** Operators that cut a number to 32 bits. Both sides BigInt literals, or `fs.constants` flags, are safe and allowed. */
export function bitOperators(file: SourceText): string[] {
  if (BIT_FILES.some((allowed) => allowed.test(file.path))) return [];
  const source = parse(file);
  const found: string[] = [];
  const harmless = (text: string) => /\bconstants\.[A-Z]_?[A-Z]+|\b[SO]_[A-Z]+\b|\.mode\b|\b\d+n\b/.test(text);
  walk(source, (node) => {
    const operator = ts.isBinaryExpression(node)
      ? node.operatorToken.kind
      : ts.isPrefixUnaryExpression(node)
        ? node.operator
        : undefined;
    if (operator !== undefined && BIT_TOKENS.has(operator) && !harmless(node.getText(source))) {
      found.push(`${file.path}:${lineOf(source, node)}: ${node.getText(source).slice(0, 60)}`);
    }
  });
  return found;
}

/** `#how-to-stop` for a heading, as the code hosts make them. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[`*]/g, '')
    .replace(/[^\p{L}\p{N}\s_-]/gu, '')
    .trim()
    .replace(/\s/g, '-');
}

/** Links to files or headings that do not exist. `exists` is asked for paths from the top of the project. */
export function deadLinks(file: SourceText, all: SourceText[], exists: (path: string) => boolean): string[] {
  const dead: string[] = [];
  const prose = file.text.replace(/^```[\s\S]*?^```/gm, '').replace(/`[^`\n]*`/g, '');
  for (const [, target] of prose.matchAll(/\]\(([^)\s]+)\)/g)) {
    if (/^[a-z]+:/.test(target)) continue;
    const [name, anchor] = target.split('#');
    const full = name === '' ? file.path : path.posix.normalize(path.posix.join(path.posix.dirname(file.path), name));
    if (!exists(full)) dead.push(`${file.path}: ${target} does not exist`);
    else if (anchor !== undefined && full.endsWith('.md')) {
      const text = all.find((other) => other.path === full)?.text ?? '';
      const anchors = [...text.matchAll(/^#{1,6} +(.+)$/gm)].map(([, heading]) => anchorOf(heading));
      if (!anchors.includes(anchor)) dead.push(`${file.path}: ${target} names no heading`);
    }
  }
  return dead;
}

const CHANGES = new Set(['Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security']);

/** The form of keepachangelog.com: Unreleased on top, then versions with dates, the newest that of package.json. */
export function changelogForm(text: string, version: string): string[] {
  const wrong: string[] = [];
  const lines = text.split('\n');
  if (lines[0] !== '# Changelog') wrong.push('the first line is not "# Changelog"');
  const versions: string[] = [];
  for (const line of lines) {
    if (/^## /.test(line)) {
      const match = /^## \[(Unreleased|\d+\.\d+\.\d+)\](?: - (\d{4}-\d{2}-\d{2}))?$/.exec(line);
      if (!match) wrong.push(`"${line}" is not "## [1.2.3] - 2026-01-31" or "## [Unreleased]"`);
      else {
        if ((match[1] === 'Unreleased') === (match[2] !== undefined))
          wrong.push(`"${line}": a date belongs to a version`);
        versions.push(match[1]);
      }
    } else if (/^### /.test(line) && !CHANGES.has(line.slice(4))) wrong.push(`"${line}" is no kind of change`);
    else if (/^#{4,} /.test(line)) wrong.push(`"${line}" is too deep`);
  }
  if (versions[0] !== 'Unreleased') wrong.push('the first section is not [Unreleased]');
  if (versions.length > 1 && versions[1] !== version)
    wrong.push(`the newest version is not ${version} of package.json`);
  return wrong;
}

/** Names of package registries and paths of one machine. */
export function machineNames(file: SourceText): string[] {
  const host = /\bregistry\.[a-z0-9-]+\.[a-z]{2,}|"resolved": *"https?:/i;
  const place = new RegExp(
    `(?<![\\w.~*$}-])/(?:${['wo' + 'rk', 'ro' + 'ot', 'ho' + 'me', 'Us' + 'ers'].join('|')})/\\w`,
  );
  return file.text.split('\n').flatMap((line, index) => {
    const match = host.exec(line) ?? place.exec(line);
    return match ? [`${file.path}:${index + 1}: ${match[0]}`] : [];
  });
}
