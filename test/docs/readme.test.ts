import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { shellBlocks } from './readme-blocks';
import { IS_ROOT, leaveOut, makeDirectory, ROOT, runProgram } from './run-script';

const readme = fs.readFileSync(path.join(ROOT, 'README.md'), 'utf8');

test('shellBlocks() finds every shell block with its notes', (t) => {
  const text = [
    '```sh\na\nb\n```',
    'Prose\n<!-- needs root -->\n<!-- before: c -->\n\n```bash\nd\n```\n```\nno shell\n```',
    '<!-- not run here: because -->\nPlain text between.\n```sh\ne\n```\n<!-- not run here: so -->\n```sh\nf\n```',
  ].join('\n\n');
  const [first, second, third, fourth, ...more] = shellBlocks(text);
  t.deepEqual(first, { line: 2, code: 'a\nb', needsRoot: false, before: '', after: '' });
  t.like(second, { code: 'd', needsRoot: true, before: 'c' });
  t.like(third, { code: 'e', notRun: undefined });
  t.like(fourth, { code: 'f', notRun: 'so' });
  t.is(more.length, 0);
});

test('README.md: every shell block does what it says, one after the other in an empty directory', async (t) => {
  const blocks = shellBlocks(readme);
  t.true(blocks.length >= 10, 'the blocks are found');
  const directory = makeDirectory(t);
  const env = { PATH: `${path.join(ROOT, 'bin')}:${process.env.PATH}:/usr/sbin:/sbin` };
  const run = (code: string) => runProgram('bash', ['-euo', 'pipefail', '-c', code], { cwd: directory, env });

  for (const block of blocks) {
    const name = `README.md:${block.line}`;
    if (block.notRun !== undefined) {
      t.log(`${name} not run here: ${block.notRun}`);
      continue;
    }
    if (block.needsRoot && !IS_ROOT) {
      leaveOut(t, `${name} needs root`);
      continue;
    }
    const before = await run(block.before);
    t.is(before.code, 0, `${name}, before: ${before.output}`);
    const result = await run(block.code);
    if (block.after !== '') await run(block.after);
    t.is(result.code, 0, `${name}:\n${block.code}\n\n${result.output}`);
    // What one block leaves mounted would hide what the next one does.
    const mounts = fs.readFileSync('/proc/self/mounts', 'utf8');
    t.false(mounts.includes(` ${directory}/`), `${name} left something mounted`);
  }
});

test('README.md names every option of imagefs mount, and no other', async (t) => {
  const { code, output } = await runProgram(path.join(ROOT, 'bin', 'imagefs'), ['mount', '--help'], { cwd: ROOT });
  t.is(code, 0);
  const ofHelp = [...new Set(output.match(/(?<=[ ,])--[a-z-]+/g))].sort();
  const table = readme.slice(readme.indexOf('## Options of'), readme.indexOf('## Stopping'));
  const ofReadme = [...new Set(table.match(/--[a-z]{2}[a-z-]+/g))].sort();
  t.deepEqual(ofReadme, ofHelp);
});

test('README.md names every command', async (t) => {
  const { output } = await runProgram(path.join(ROOT, 'bin', 'imagefs'), ['--help'], { cwd: ROOT });
  const commands = [...output.matchAll(/^ {2}([a-z]+) {2}/gm)].map(([, name]) => name);
  t.true(commands.length >= 7);
  for (const name of commands) {
    t.regex(readme, new RegExp(`imagefs ${name}|\`${name}\``), `${name} is not in the README`);
  }
});
