/** `imagefs snapshot`: internal snapshots of an image, with the words of `qemu-img snapshot`. One that is mounted is changed through the mount. */
import { snapshotLines } from '../../block/info-text';
import type { BlockNode } from '../../block/node';
import { openImage } from '../../block/open';
import {
  deleteSnapshot,
  listSnapshots,
  revertToSnapshot,
  type SnapshotInfo,
  supportsSnapshots,
  takeSnapshot,
} from '../../block/snapshots';
import { LiveImage } from '../../daemon/live-snapshots';
import { BlockError } from '../../errors';
import type { SnapshotInfo as Listed } from '../../formats/format';
import { createTableCache } from '../../shared/table-cache';
import { MIB } from '../../units';
import { parseWords } from '../args';
import { type Command, UsageError } from '../command';
import { onlyFile, withImageFile } from '../image-file';
import { printLine } from '../output';

const HELP = `Usage: imagefs snapshot [-l [-U] | -c NAME | -a NAME [--force] | -d NAME] [-q] FILE

Shows, takes, applies and deletes the internal snapshots of a qcow2 image. One that imagefs has mounted stays mounted:
this does there what "mkdir" and "rmdir" in MOUNTPOINT/snapshots do.

  -l            list the snapshots (default)
  -c NAME       take one: what the disk holds now
  -a NAME       apply one: the disk becomes what it was; what it holds now is lost. A name, or an id
  -d NAME       delete the first one of this name
      --force   with -a: although somebody has the disk of the mount open, and will see it change
  -q            print nothing but errors and the list
  -U, --force-share   list although somebody writes to the image; what is shown may be inconsistent
      --debug   show where an error comes from

Exit code: 0, or 1 when it failed or the words are wrong.
Example: imagefs snapshot -c before-upgrade vm.qcow2
`;

/** Bytes: tables of counts mostly. */
const CACHE_BYTES = 32 * MIB;

type Action = { kind: 'list' } | { kind: 'create' | 'apply' | 'delete'; name: string };

function run(args: string[]): number {
  const { values, positionals } = parseWords(args, {
    list: { type: 'boolean', short: 'l' },
    create: { type: 'string', short: 'c', multiple: true },
    apply: { type: 'string', short: 'a', multiple: true },
    delete: { type: 'string', short: 'd', multiple: true },
    quiet: { type: 'boolean', short: 'q' },
    'force-share': { type: 'boolean', short: 'U' },
    force: { type: 'boolean' },
    'image-opts': { type: 'boolean' },
    debug: { type: 'boolean' },
  });
  if (values['image-opts']) throw new UsageError('--image-opts is not supported: name the file');
  const names = (kind: 'create' | 'apply' | 'delete'): Action[] => (values[kind] ?? []).map((name) => ({ kind, name }));
  const actions: Action[] = [...names('create'), ...names('apply'), ...names('delete')];
  if (values.list) actions.push({ kind: 'list' });
  if (actions.length > 1) throw new UsageError("Cannot mix '-l', '-a', '-c', '-d'");
  const path = onlyFile(positionals);
  const action: Action = actions[0] ?? { kind: 'list' };
  const forceShare = values['force-share'] === true;
  const force = values.force === true;
  if (force && action.kind !== 'apply') throw new UsageError('--force goes with -a');
  if (action.kind === 'list') list(path, forceShare);
  else if (forceShare) throw new UsageError('-U goes with -l: a change needs the image for itself');
  else change(path, action.kind, action.name, force);
  return 0;
}

function list(path: string, forceShare: boolean): void {
  const live = forceShare ? undefined : LiveImage.find(path);
  if (live !== undefined) {
    const snapshots = live.list();
    if (snapshots.length > 0) printSnapshots(snapshots);
    return;
  }
  withImageFile(path, { format: undefined, readOnly: true, forceShare }, ({ module, header, storage }) => {
    const { snapshots } = module.describe?.(header, storage) ?? {};
    if (snapshots !== undefined) printSnapshots(snapshots);
  });
}

function printSnapshots(snapshots: Listed[]): void {
  printLine('Snapshot list:');
  for (const line of snapshotLines(snapshots)) printLine(line);
}

function change(path: string, kind: 'create' | 'apply' | 'delete', name: string, force: boolean): void {
  const live = LiveImage.find(path);
  if (live !== undefined) {
    if (kind === 'create') attempt(`create snapshot '${name}'`, () => live.take(name));
    else if (kind === 'apply') attempt(`apply snapshot '${name}'`, () => live.revert(name, force));
    else attempt(`delete snapshot '${name}'`, () => live.remove(name));
    return;
  }
  const image = openWritable(path);
  let failure: unknown;
  try {
    const { node } = image;
    if (kind === 'create') attempt(`create snapshot '${name}'`, () => takeSnapshot(supporting(node), name));
    else if (kind === 'apply')
      attempt(`apply snapshot '${name}'`, () => revertToSnapshot(node, byIdOrName(node, name)));
    else attempt(`delete snapshot '${name}'`, () => deleteSnapshot(node, found(node, byName(node, name)).id));
  } catch (error) {
    failure = error;
  }
  try {
    image.close();
  } catch (error) {
    // The first error says what went wrong.
    failure ??= error;
  }
  if (failure !== undefined) throw failure;
}

function openWritable(path: string) {
  try {
    return openImage(path, {
      readOnly: false,
      backing: 'directory',
      threads: 1,
      cache: createTableCache(CACHE_BYTES),
      imageId: 0,
      lock: true,
      // Snapshots are made of tables: what is below the image does not matter.
      withoutBacking: true,
    });
  } catch (error) {
    if (!(error instanceof BlockError) || error.code !== 'BUSY') throw error;
    const hint = 'if imagefs has mounted it, make and remove folders in MOUNTPOINT/snapshots';
    throw new BlockError('BUSY', `${error.message} (${hint})`, { path, cause: error });
  }
}

function byName(node: BlockNode, name: string): SnapshotInfo | undefined {
  return listSnapshots(node).find((snapshot) => snapshot.name === name);
}

/** As QEMU: an id goes before a name. */
function byIdOrName(node: BlockNode, name: string): string {
  const byId = listSnapshots(supporting(node)).find(({ id }) => id === name);
  return found(node, byId ?? byName(node, name)).id;
}

function found(node: BlockNode, snapshot: SnapshotInfo | undefined): SnapshotInfo {
  if (snapshot !== undefined) return snapshot;
  throw new BlockError('NOT_FOUND', 'snapshot not found', { path: node.path });
}

function supporting(node: BlockNode): BlockNode {
  if (supportsSnapshots(node)) return node;
  throw new BlockError('UNSUPPORTED_FEATURE', `this ${node.format} image cannot have any`, {
    path: node.path,
  });
}

function attempt(what: string, body: () => unknown): void {
  try {
    body();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.code, `Could not ${what}: ${error.message}`, { path: error.path, cause: error });
  }
}

export const command: Command = {
  name: 'snapshot',
  summary: 'Show, take, apply and delete the snapshots inside an image',
  help: HELP,
  usageExit: 1,
  run,
};
