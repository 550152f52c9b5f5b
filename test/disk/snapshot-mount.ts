/** Real mounts of qcow2 images that qemu-img makes and judges. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import { MIB } from '../../src/units';
import { required } from '../mount/cli';
import { isInstalled, type Mount, program, succeed } from './disk-mount';

export const SIZE = 8 * MIB;

export async function qemuIsHere(t: ExecutionContext): Promise<boolean> {
  return required(t, await isInstalled('qemu-img'), 'qemu-img is not installed');
}

export async function qcow2(
  t: ExecutionContext,
  directory: string,
  size = SIZE,
  ...options: string[]
): Promise<string> {
  const image = path.join(directory, 'vm.qcow2');
  await succeed(t, 'qemu-img', ['create', '-q', '-f', 'qcow2', ...options, image, String(size)]);
  return image;
}

export async function qemuWrites(t: ExecutionContext, image: string, ...commands: string[]): Promise<void> {
  await succeed(t, 'qemu-io', ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), image]);
}

/** What qemu-img says that a snapshot holds. */
export async function convertedSnapshot(t: ExecutionContext, image: string, id: string): Promise<Buffer> {
  const raw = `${image}.${id}.raw`;
  await succeed(t, 'qemu-img', ['convert', '-l', `snapshot.id=${id}`, '-O', 'raw', image, raw]);
  const content = fs.readFileSync(raw);
  fs.unlinkSync(raw);
  return content;
}

/** Unmounts; QEMU finds nothing wrong, and these snapshots. */
export async function leaveSound(
  t: ExecutionContext,
  { unmount }: Mount,
  image: string,
  names: string[],
): Promise<void> {
  await unmount();
  const checked = await program('qemu-img', ['check', '-f', 'qcow2', image]);
  t.is(checked.code, 0, checked.stdout + checked.stderr);
  const info = JSON.parse((await succeed(t, 'qemu-img', ['info', '--output=json', image])).stdout) as {
    snapshots?: { name: string }[];
  };
  t.deepEqual((info.snapshots ?? []).map(({ name }) => name).sort(), [...names].sort());
}

export function put(disk: string, content: Buffer, offset: number): void {
  const fd = fs.openSync(disk, 'r+');
  fs.writeSync(fd, content, 0, content.length, offset);
  fs.closeSync(fd);
}

export function snapshotsIn(mounted: Mount): { at(...names: string[]): string; names(): string[] } {
  const folder = path.join(mounted.mountpoint, 'snapshots');
  return { at: (...names) => path.join(folder, ...names), names: () => fs.readdirSync(folder) };
}
