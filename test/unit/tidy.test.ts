import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import {
  bitOperators,
  changelogForm,
  deadLinks,
  importCycles,
  layering,
  machineNames,
  marks,
  type SourceText,
  tooLong,
} from './tidy-rules';

const ROOT = path.resolve(__dirname, '..', '..', '..');
const NOT_OURS = new Set(['node_modules', 'dist', '.git']);
const TEXT = /\.(ts|js|mjs|json|md|sh|service|mount|socket|yml|yaml)$|^(LICENSE|run|imagefs|mount\.imagefs|\..+)$/;

/** Everything that is, or is about to be, in the repository. Walks the tree: a source archive has no git. */
function readProject(directory = ROOT): SourceText[] {
  return fs.readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const full = path.join(directory, entry.name);
    if (NOT_OURS.has(entry.name) || /\.(tmp|tgz)$/.test(entry.name)) return [];
    if (entry.isDirectory()) return readProject(full);
    if (!entry.isFile() || !TEXT.test(entry.name)) return [];
    return [{ path: path.relative(ROOT, full).split(path.sep).join('/'), text: fs.readFileSync(full, 'utf8') }];
  });
}

const project = readProject();
const sources = project.filter((file) => /^src\/.*\.ts$/.test(file.path));
const code = project.filter((file) => /^(src|test|scripts|mnt-examples)\/.*\.ts$/.test(file.path));
const pages = project.filter((file) => file.path.endsWith('.md'));

/** A file for a bad sample. */
const file = (name: string, text: string): SourceText => ({ path: name, text });

test('the project has the files that the rules look at', (t) => {
  t.true(sources.length > 20);
  t.true(pages.some((page) => page.path === 'README.md'));
});

test('layering(): imports go to the right only, native packages have one place each', (t) => {
  t.deepEqual(layering(sources), []);
});

test('layering() finds every kind of breach', (t) => {
  const right = file('src/cli/a.ts', `import { b } from '../block/b';\nimport { hex } from '../errors';`);
  t.deepEqual(layering([right]), []);
  t.is(layering([file('src/block/b.ts', `import { a } from '../cli/a';`)]).length, 1);
  t.is(layering([file('src/storage/b.ts', `import type { A } from '../formats/driver';`)]).length, 1);
  t.is(layering([file('src/shared/b.ts', `export { a } from '../storage/file';`)]).length, 1);
  t.is(layering([file('src/system/b.ts', `const a = require('../shared/lock');`)]).length, 1);
  t.is(layering([file('src/vfs/b.ts', `type A = import('../fuse/session').MountOptions;`)]).length, 1);
  t.is(layering([file('src/units.ts', `import { a } from './system/libc';`)]).length, 1);
  t.is(layering([file('src/util/b.ts', '')]).length, 1);
  t.is(layering([file('src/storage/b.ts', `import koffi from 'koffi';`)]).length, 1);
  t.is(layering([file('src/daemon/b.ts', `import Fuse from 'fuse-native';`)]).length, 1);
});

test('importCycles(): no file imports itself in a circle', (t) => {
  t.deepEqual(importCycles(sources), []);
});

test('importCycles() finds a circle once', (t) => {
  const a = file('src/a.ts', `import './b';`);
  const b = file('src/b.ts', `import './c';`);
  const c = file('src/c.ts', `import type { A } from './a';`);
  t.deepEqual(importCycles([c, b, a]), ['src/a.ts > src/b.ts > src/c.ts > src/a.ts']);
  t.deepEqual(importCycles([a, b]), []);
});

test('tooLong(): no file has more than 400 lines', (t) => {
  t.deepEqual(tooLong(code), []);
  t.is(tooLong([file('a.ts', 'x\n'.repeat(401))]).length, 1);
  t.is(tooLong([file('a.ts', 'x\n'.repeat(400))]).length, 0);
});

test('marks(): nothing is unfinished, switched off or untyped', (t) => {
  t.deepEqual(code.flatMap(marks), []);
});

test('marks() finds each mark', (t) => {
  const samples = [
    `const a: ${'an'}y = 1;`,
    'let a: Map<string, any>;',
    `// TO${'DO'} later`,
    `// FIX${'ME'}`,
    `test.on${'ly'}('a', t => t.pass());`,
    `test.serial.sk${'ip'}('a', t => t.pass());`,
    `// @ts-${'ignore'}`,
  ];
  for (const sample of samples) t.is(marks(file('a.ts', sample)).length, 1, sample);
  t.deepEqual(marks(file('a.ts', `const company = 'any'; // of many, to do`)), []);
});

test('bitOperators(): 32-bit operators stay in the codec files', (t) => {
  t.deepEqual(sources.flatMap(bitOperators), []);
});

test('bitOperators() finds each operator outside the codec files', (t) => {
  for (const operator of ['&', '|', '^', '<<', '>>', '>>>', '&=', '|=', '^=', '<<=', '>>=', '>>>=']) {
    t.is(bitOperators(file('src/block/a.ts', `offset ${operator} mask;`)).length, 1, operator);
  }
  t.is(bitOperators(file('src/block/a.ts', 'const a = ~mask;')).length, 1);
  t.is(bitOperators(file('src/shared/lock.ts', 'word & 1;')).length, 0);
  t.is(bitOperators(file('src/block/a.ts', 'a && b || c; type T = A | B & C;')).length, 0);
  t.is(bitOperators(file('src/storage/a.ts', 'fs.constants.O_RDWR | fs.constants.O_CREAT')).length, 0);
});

test('deadLinks(): every link of the documents leads somewhere', (t) => {
  const exists = (name: string) => fs.existsSync(path.join(ROOT, name));
  t.deepEqual(
    pages.flatMap((page) => deadLinks(page, pages, exists)),
    [],
  );
});

test('deadLinks() finds missing files and headings', (t) => {
  const other = file('docs/b.md', '# How to `stop` it\n');
  const exists = (name: string) => name === 'docs/b.md' || name === 'docs/a.md';
  const check = (text: string) => deadLinks(file('docs/a.md', text), [other], exists);
  t.deepEqual(check('[x](b.md) [y](b.md#how-to-stop-it) [z](https://example.org/none)'), []);
  t.is(check('[x](c.md)').length, 1);
  t.is(check('[x](b.md#how-to-go)').length, 1);
  t.is(check('`[x](c.md)`\n```\n[x](c.md)\n```\n').length, 0);
});

test('changelogForm(): CHANGELOG.md keeps its form', (t) => {
  const { version } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as { version: string };
  t.deepEqual(changelogForm(fs.readFileSync(path.join(ROOT, 'CHANGELOG.md'), 'utf8'), version), []);
});

test('changelogForm() finds what breaks the form', (t) => {
  const good = '# Changelog\n\n## [Unreleased]\n\n### Added\n\n- x\n\n## [1.0.0] - 2026-01-31\n\n### Fixed\n\n- y\n';
  t.deepEqual(changelogForm(good, '1.0.0'), []);
  t.is(changelogForm(good, '1.0.1').length, 1);
  t.is(changelogForm(good.replace('# Changelog', '# Changes'), '1.0.0').length, 1);
  t.is(changelogForm(good.replace('### Added', '### New'), '1.0.0').length, 1);
  t.is(changelogForm(good.replace(' - 2026-01-31', ''), '1.0.0').length, 1);
  t.is(changelogForm(good.replace('[1.0.0] - 2026-01-31', '1.0 of January'), '1.0.0').length, 1);
  t.is(changelogForm(good.replace('## [Unreleased]\n', ''), '1.0.0').length, 1);
});

test('machineNames(): no registry host and no path of one machine', (t) => {
  t.deepEqual(project.flatMap(machineNames), []);
});

test('machineNames() finds them', (t) => {
  const samples = [
    `https://regis${'try'}.npmjs.org/x`,
    `"resolved": ${'"'}https://example.org/x.tgz"`,
    `cd /wo${'rk'}/main`,
    `HOME=/ro${'ot'}/x`,
    `'/ho${'me'}/me/vm.qed'`,
  ];
  for (const sample of samples) t.is(machineNames(file('a.md', sample)).length, 1, sample);
  t.deepEqual(machineNames(file('a.md', `src/wo${'rk'}/x, $HOME/ro${'ot'}/x, a registry.get(name)`)), []);
});
