/** Real mounts of small images, for tests of what the file `disk` does. Everything goes through the command line, as users do it. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { command as create } from '../../src/cli/commands/create';
import { KIB, MIB } from '../../src/units';
import { imagefs, type Result, required, run, workspace } from '../mount/cli';

export type Session = 'kernel' | 'native';
export const SESSIONS: readonly Session[] = ['kernel', 'native'];

export const CLUSTER = 64 * KIB;
/** No multiple of the cluster, so that the last cluster is cut. */
export const DISK_SIZE = 8 * MIB + 1536;

/** One test for each session. */
export function onBothSessions(title: string, body: (t: ExecutionContext, session: Session) => Promise<void>): void {
  for (const session of SESSIONS) test.serial(`${title} (${session} session)`, (t) => body(t, session));
}

/** A program with messages in English, without standard input, to its end. */
export function program(file: string, args: readonly string[]): Promise<Result> {
  return run(file, [...args], { env: { ...process.env, LC_ALL: 'C' } });
}

/** As `program`, and the exit code must be 0. */
export async function succeed(t: ExecutionContext, file: string, args: readonly string[]): Promise<Result> {
  const ran = await program(file, args);
  t.is(ran.code, 0, `${file} ${args.join(' ')}: ${ran.stderr}`);
  return ran;
}

/** `imagefs create`, in this process. */
export function createImage(...args: string[]): void {
  const code = create.run(['-q', ...args]);
  if (code !== 0) throw new Error(`create ${args.join(' ')}: exit code ${String(code)}`);
}

export interface Mount {
  mountpoint: string;
  /** Path of the file `disk`. */
  disk: string;
  /** Contract: when it returns, everything is in the image. */
  unmount(): Promise<void>;
}

/** Mounts, and unmounts at the end of the test unless the test does. */
export async function mount(t: ExecutionContext, session: Session, args: readonly string[]): Promise<Mount> {
  const mountpoint = workspace(t);
  const ran = await imagefs(['mount', '--session', session, '--threads', '4', ...args, mountpoint]);
  let mounted = ran.code === 0;
  const unmount = async (): Promise<void> => {
    if (!mounted) return;
    mounted = false;
    const left = await imagefs(['umount', mountpoint]);
    if (left.code !== 0) throw new Error(`imagefs umount: ${left.stderr}`);
  };
  t.teardown(unmount);
  if (ran.code !== 0) throw new Error(`imagefs mount ${args.join(' ')}: ${ran.stderr}`);
  return { mountpoint, disk: path.join(mountpoint, 'disk'), unmount };
}

/** An overlay over a raw backing file that is shorter than the disk, and what the disk reads as. */
export function overlayImage(directory: string): { image: string; base: string; shadow: Buffer } {
  const base = path.join(directory, 'base.img');
  const image = path.join(directory, 'vm.qed');
  const content = noise(5 * MIB + 512, 1);
  // Holes and zeroes in the backing file: what it does not hold is zero, not missing.
  content.fill(0, MIB, 2 * MIB);
  fs.writeFileSync(base, content);
  createImage('-f', 'qed', '-b', base, '-F', 'raw', image, String(DISK_SIZE));
  const shadow = Buffer.alloc(DISK_SIZE);
  content.copy(shadow);
  return { image, base, shadow };
}

export function standAloneImage(directory: string, size = DISK_SIZE): string {
  const image = path.join(directory, 'vm.qed');
  createImage('-f', 'qed', image, String(size));
  return image;
}

/** A small generator of numbers in [0, 1), the same for the same seed. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Bytes without pattern, the same for the same seed. */
export function noise(length: number, seed: number): Buffer {
  const next = random(seed);
  const words = Uint32Array.from({ length: Math.ceil(length / 4) }, () => next() * 2 ** 32);
  return Buffer.from(words.buffer, 0, length);
}

/** Fails with the place of the first difference, and not with megabytes of bytes. */
export function sameBytes(t: ExecutionContext, found: Uint8Array, expected: Uint8Array, label: string): void {
  if (Buffer.compare(found, expected) === 0) {
    t.pass();
    return;
  }
  const at = expected.findIndex((byte, index) => byte !== found[index]);
  t.fail(`${label}: ${found.length} bytes, expected ${expected.length}; first difference at ${at}`);
}

export async function isInstalled(file: string): Promise<boolean> {
  try {
    await program(file, ['--version']);
    return true;
  } catch {
    return false;
  }
}

export interface VerifyOptions {
  /** Clusters were freed and not used again: QED keeps no list of them, so QEMU counts them as leaked (exit code 3). */
  freed?: boolean;
}

/** The image, unmounted, holds `shadow`: by QEMU's reading, its check and our own. */
export async function verifyImage(
  t: ExecutionContext,
  directory: string,
  image: string,
  shadow: Buffer,
  options: VerifyOptions = {},
): Promise<void> {
  const checked = await imagefs(['check', '-f', 'qed', image]);
  t.is(checked.code, 0, checked.stdout + checked.stderr);
  if (!required(t, await isInstalled('qemu-img'), 'qemu-img is not installed')) return;
  const raw = path.join(directory, 'shadow.img');
  fs.writeFileSync(raw, shadow);
  const compared = await program('qemu-img', ['compare', '-f', 'qed', '-F', 'raw', image, raw]);
  t.is(compared.code, 0, compared.stdout + compared.stderr);
  const judged = await program('qemu-img', ['check', '-f', 'qed', image]);
  t.true(judged.code === 0 || (options.freed === true && judged.code === 3), judged.stdout + judged.stderr);
}
