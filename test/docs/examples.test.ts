import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { IS_ROOT, leaveOut, makeDirectory, ROOT, runProgram, type ScriptResult } from './run-script';

const EXAMPLES = path.join(ROOT, 'mnt-examples');
/** What a script says with that it needs root. */
const NEEDS_ROOT = 77;
const scripts = fs
  .readdirSync(EXAMPLES, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.sh') && path.basename(name) !== 'lib.sh')
  .sort();

test('the examples are found, and README.md there names each', (t) => {
  t.true(scripts.length >= 7);
  const readme = fs.readFileSync(path.join(EXAMPLES, 'README.md'), 'utf8');
  for (const name of scripts) t.true(readme.includes(`](${name})`), `${name} is not in mnt-examples/README.md`);
});

/**
 * Runs its arguments where /sbin is a copy of links in a mount namespace of its own: fstab-entry.sh links the mount helper
 * there, and so does another test at the same time.
 */
const OWN_SBIN = `
  mkdir real copy
  mount --bind /usr/sbin real
  for file in real/*; do ln -s "$PWD/$file" copy/; done
  mount --bind copy /usr/sbin
  cd "$1" && exec "$2"`;

/** A losetup that writes down its arguments in `$LOSETUP_CALLS`. */
const RECORDING_LOSETUP = '#!/bin/sh\necho "$*" >>"$LOSETUP_CALLS"\nPATH=$' + '{PATH#*:} exec losetup "$@"\n';

function runExample(
  t: ExecutionContext,
  name: string,
  directory: string,
  env: NodeJS.ProcessEnv = {},
): Promise<ScriptResult> {
  const options = { cwd: directory, env: { TMPDIR: directory, ...env } };
  const script = path.join(EXAMPLES, name);
  if (name !== 'fstab-entry.sh' || !IS_ROOT) return runProgram(script, [], options);
  const args = ['--mount', 'bash', '-euc', OWN_SBIN, 'bash', directory, script];
  return runProgram('unshare', args, { ...options, cwd: makeDirectory(t) });
}

/** What is special about a script: `calls` are the first arguments of each losetup. */
const SPECIAL: Record<string, (t: ExecutionContext, output: string, calls: string[]) => void> = {
  'layers.sh': (t, output) => {
    const readme = fs.readFileSync(path.join(EXAMPLES, 'README.md'), 'utf8');
    const shown = /```\n(\$ truncate[\s\S]*?)```/.exec(readme)?.[1] ?? '';
    const plain = (text: string) => text.replace(/\S*\/imagefs-example-\w+/g, 'SCRATCH').replace(/ +$/gm, '');
    t.is(plain(shown), plain(output), 'mnt-examples/README.md shows what layers.sh really prints');
  },
  'loop-mount-partitions.sh': (t, _output, calls) => {
    t.deepEqual(
      calls,
      ['--find', '-d', '--find', '-d'],
      'detached once: a moment later another program may have the device',
    );
  },
};

for (const name of scripts) {
  test.serial(`mnt-examples/${name} runs to its end and leaves nothing behind`, async (t) => {
    const directory = makeDirectory(t);
    fs.chmodSync(directory, 0o755); // one script becomes another user in it
    const tools = makeDirectory(t);
    fs.chmodSync(tools, 0o755);
    fs.writeFileSync(path.join(tools, 'losetup'), RECORDING_LOSETUP, { mode: 0o755 });
    const LOSETUP_CALLS = path.join(tools, 'calls');
    fs.writeFileSync(LOSETUP_CALLS, '');
    const env = { LOSETUP_CALLS, PATH: `${tools}:${process.env.PATH}` };
    const { code, output } = await runExample(t, name, directory, env);
    if (code === NEEDS_ROOT && !IS_ROOT) return leaveOut(t, `${name} needs root`);
    t.is(code, 0, output);
    t.regex(output, /^OK: .*$/m, output);
    t.deepEqual(fs.readdirSync(directory), []);
    const calls = fs.readFileSync(LOSETUP_CALLS, 'utf8').match(/^\S+/gm) ?? [];
    SPECIAL[name]?.(t, output, calls);
  });
}

test('every script of which something special is expected is there', (t) => {
  for (const name of Object.keys(SPECIAL)) t.true(scripts.includes(name), name);
});

/** As scripts/demo.sh sets it. */
function demoEnvironment(directory: string): NodeJS.ProcessEnv {
  return { TMPDIR: directory, DISABLE_V8_COMPILE_CACHE: '1' };
}

test.serial('npm run demo shows everything in less than a minute and leaves nothing behind', async (t) => {
  const directory = makeDirectory(t);
  const begun = Date.now();
  // What scripts/demo.sh runs after it has installed and built; both have happened before tests run.
  const tsNode = path.join(ROOT, 'node_modules', '.bin', 'ts-node');
  const demo = path.join(EXAMPLES, 'demo.ts');
  const { code, output } = await runProgram(tsNode, [demo], { cwd: ROOT, env: demoEnvironment(directory) });
  t.is(code, 0, output);
  t.log(`took ${((Date.now() - begun) / 1000).toFixed(1)} s`);
  for (const words of [/layers\/1-base\.raw\/disk/, /^same$/m, /No errors were found/, /the base is unchanged/]) {
    t.regex(output, words);
  }
  if (IS_ROOT) t.regex(output, /changed in the guest/);
  else t.regex(output, /not root: the file system of the guest is not loop-mounted/);
  t.deepEqual(fs.readdirSync(directory), []);
});

test.serial('npm run demo cleans up when it is interrupted', async (t) => {
  const directory = makeDirectory(t);
  const code = `
    "$1" "$2" > out 2>&1 & pid=$!
    until grep -q 'imagefs list' out || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
    kill -TERM $pid; wait $pid; echo "code $?"`;
  const args = ['-c', code, 'bash', path.join(ROOT, 'node_modules', '.bin', 'ts-node'), path.join(EXAMPLES, 'demo.ts')];
  const { output } = await runProgram('bash', args, { cwd: directory, env: demoEnvironment(directory) });
  t.regex(output, /^code 130$/m);
  t.deepEqual(fs.readdirSync(directory), ['out']);
});
