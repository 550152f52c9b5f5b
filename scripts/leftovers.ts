/**
 * Finds and removes what tests left behind in a temporary directory: mounts, loop devices, processes. Everything is
 * recognised by the directory's unique name, so nothing of anybody else's is ever touched.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

export interface Leftovers {
  /** Mountpoints, the innermost first. */
  mounts: string[];
  /** `/dev/loop3` */
  loops: string[];
  /** Process ids with their command lines. */
  processes: Map<number, string>;
}

function tryRead(path: string): string {
  try {
    return fs.readFileSync(path, 'latin1');
  } catch {
    return ''; // gone, or not ours to see
  }
}

/** `\040` and the like, as /proc/self/mounts writes blanks. */
function unescapeMount(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

function findLoops(directory: string): string[] {
  let names: string[];
  try {
    names = fs.readdirSync('/sys/block');
  } catch {
    return [];
  }
  return names
    .filter((name) => name.startsWith('loop'))
    .filter((name) => tryRead(`/sys/block/${name}/loop/backing_file`).includes(`${directory}/`))
    .map((name) => `/dev/${name}`);
}

function findMounts(directory: string, loops: string[]): string[] {
  const found: string[] = [];
  for (const line of tryRead('/proc/self/mounts').split('\n')) {
    const [source, target] = line.split(' ').map(unescapeMount);
    if (target === undefined) continue;
    const onOurLoop = loops.some((loop) => source === loop || source.startsWith(`${loop}p`));
    if (target.startsWith(`${directory}/`) || onOurLoop) found.unshift(target);
  }
  return found;
}

function findProcesses(directory: string): Map<number, string> {
  const found = new Map<number, string>();
  for (const name of fs.readdirSync('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const commandLine = tryRead(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim();
    // Kernel threads and zombies have no command line: nothing to end there.
    if (commandLine === '') continue;
    const environment = tryRead(`/proc/${pid}/environ`);
    if (environment.includes(`TMPDIR=${directory}\0`) || commandLine.includes(`${directory}/`))
      found.set(pid, commandLine);
  }
  return found;
}

/** What of this directory is in use now. */
export function findLeftovers(directory: string): Leftovers {
  const loops = findLoops(directory);
  return { loops, mounts: findMounts(directory, loops), processes: findProcesses(directory) };
}

/** One line for each. */
export function describeLeftovers(left: Leftovers): string[] {
  return [
    ...left.mounts.map((path) => `mount ${path}`),
    ...left.loops.map((path) => `loop device ${path}`),
    ...[...left.processes].map(([pid, command]) => `process ${pid}: ${command.slice(0, 200)}`),
  ];
}

function run(command: string, ...args: string[]): void {
  // Never waits for ever: a mount whose daemon hangs must not hang the clean-up.
  spawnSync(command, args, { stdio: 'ignore', timeout: 15_000, killSignal: 'SIGKILL' });
}

/** At once, whoever uses it; nothing happens if it is gone. umount(2) is for root, others have fusermount3 for their own mounts. */
export function detachMount(mountpoint: string): void {
  if (process.getuid?.() === 0) run('umount', '-l', mountpoint);
  else run('fusermount3', '-u', '-z', mountpoint);
}

function signalAll(processes: Map<number, string>, signal: NodeJS.Signals): void {
  for (const pid of processes.keys()) {
    try {
      process.kill(pid, signal);
    } catch {
      // it has just ended
    }
  }
}

async function until(directory: string, milliseconds: number, done: (left: Leftovers) => boolean): Promise<Leftovers> {
  const end = Date.now() + milliseconds;
  for (;;) {
    const left = findLeftovers(directory);
    if (done(left) || Date.now() >= end) return left;
    await delay(50);
  }
}

const nothing = (left: Leftovers) => left.mounts.length + left.loops.length + left.processes.size === 0;

/**
 * Waits a moment for what is just ending, then removes the rest: guests first, then loop devices, daemons, dead mounts.
 * @returns one line for each thing that was left behind; empty when the tests cleaned up
 */
export async function removeLeftovers(directory: string): Promise<string[]> {
  const left = await until(directory, 3000, nothing);
  if (nothing(left)) return [];
  const lines = describeLeftovers(left);
  for (const path of left.mounts.filter(isLoopMount)) run('umount', path);
  // Looked up anew: one that detached itself with its mount may already be somebody else's.
  for (const loop of findLoops(directory)) run('losetup', '-d', loop);
  signalAll(left.processes, 'SIGTERM');
  const stubborn = await until(directory, 3000, (now) => now.processes.size === 0);
  signalAll(stubborn.processes, 'SIGKILL');
  await until(directory, 2000, (now) => now.processes.size === 0);
  for (const path of findLeftovers(directory).mounts) detachMount(path);
  // The kernel lets go of a loop device a moment later when somebody looks at it just now.
  const still = describeLeftovers(await until(directory, 5000, nothing));
  if (still.length > 0) lines.push(...still.map((line) => `could not remove ${line}`));
  return lines;
}

function isLoopMount(path: string): boolean {
  return tryRead('/proc/self/mounts')
    .split('\n')
    .some((line) => line.startsWith('/dev/loop') && unescapeMount(line.split(' ')[1] ?? '') === path);
}

/** Deletes the directory unless something is still mounted in it: a delete must never reach through a mount. */
export function removeDirectory(directory: string): void {
  if (findMounts(directory, []).length > 0) return;
  fs.rmSync(directory, { recursive: true, force: true });
}
