/** Runs qemu-img, qemu-io and imagefs on the same files. */
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { CommandServer, type Ran } from './command-server';

const haveQemu = ['qemu-img', 'qemu-io'].every((tool) => spawnSync(tool, ['--version']).status === 0);

/** A test that needs QEMU's tools. Without them it passes, unless IMAGEFS_REQUIRE_ALL says that it must run. */
export function oracleTest(
  title: string,
  body: (t: ExecutionContext, directory: string) => void | Promise<void>,
): void {
  test(title, async (t) => {
    if (!haveQemu) {
      t.log('left out: qemu-img and qemu-io (package qemu-utils) are not installed');
      t.not(process.env.IMAGEFS_REQUIRE_ALL, '1');
      return;
    }
    const directory = newDirectory();
    t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
    await body(t, directory);
  });
}

let shared: string | undefined;
let server: { commands: CommandServer; directory: string } | undefined;

/** A directory that all tests of the file only read, filled when the first of them asks for it. */
export function sharedDirectory(fill: (directory: string) => void): string {
  if (shared === undefined) {
    shared = newDirectory();
    fill(shared);
  }
  return shared;
}

test.after.always(() => {
  for (const directory of [shared, server?.directory]) {
    if (directory !== undefined) fs.rmSync(directory, { recursive: true, force: true });
  }
});

function newDirectory(): string {
  return fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
}

export function run(directory: string, program: string, args: string[]): Ran {
  const { status, stdout, stderr } = spawnSync(program, args, {
    cwd: directory,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  return { code: status, stdout, stderr };
}

export function imagefs(directory: string, args: string[]): Ran {
  if (server === undefined) {
    const own = newDirectory();
    server = { commands: new CommandServer(own), directory: own };
  }
  try {
    return server.commands.run(directory, args);
  } catch (error) {
    // The next command has a process of its own again.
    fs.rmSync(server.directory, { recursive: true, force: true });
    server = undefined;
    throw error;
  }
}

export function qemuImg(directory: string, args: string[]): Ran {
  return run(directory, 'qemu-img', args);
}

/** Must succeed. */
export function make(directory: string, ...args: string[]): void {
  execFileSync('qemu-img', args, { cwd: directory, stdio: ['ignore', 'ignore', 'pipe'] });
}

/** Commands of qemu-io on a QED image, e.g. `write -P 1 0 64k`. */
export function io(directory: string, file: string, ...commands: string[]): void {
  const words = commands.flatMap((command) => ['-c', command]);
  execFileSync('qemu-io', ['-f', 'qed', ...words, file], { cwd: directory, stdio: ['ignore', 'ignore', 'pipe'] });
}

/** Both tools, same words: same output, same exit code. */
export function sameAnswer(t: ExecutionContext, directory: string, args: string[]): void {
  const theirs = qemuImg(directory, args);
  const ours = imagefs(directory, args);
  const words = args.join(' ');
  t.is(ours.stdout, theirs.stdout, words);
  t.is(ours.code, theirs.code, `${words}: exit code; ${ours.stderr}`);
}
