/**
 * The files of all snapshots of a mount, in one thread. Their inode numbers lie behind those of the plan:
 *
 *   base + serial * 8 + place        serial: of the snapshot, in the life of the mount (`SnapshotSlots`)
 *                                    place: 0 the folder, 1 disk, 2 info.json, 3 map.json, 4 vmstate, 5 .revert
 *
 * A view is made when one of its files is first asked for; a thousand snapshots cost a list of names.
 */
import * as assert from 'node:assert';
import type { BlockNode } from '../block/node';
import { type DirectoryEntry, type FileAttributes, FileError, type OpenedFile, type OpenFlags } from './filesystem';
import { NAME_MAX_BYTES } from './names';
import { RevertFile } from './revert-file';
import { SnapshotFolder, type SnapshotView } from './snapshot-folder';
import { SnapshotSlots } from './snapshot-slots';
import type { SnapshotSource } from './snapshot-source';
import { type FilePlan, type SnapshotsPlan, type TreePlan, TreeState, viewFiles } from './tree';
import { attributesOf, DEFAULT_BLOCK_SIZE, type FileFacts, type VirtualFile } from './virtual-file';
import { VmStateFile } from './vm-state-file';

const STRIDE = 8;
const FOLDER = 0;
const NAMES = ['', 'disk', 'info.json', 'map.json', 'vmstate', '.revert'];
const VM_STATE = 4;
const REVERT = 5;
/** Nobody but the owner, who can only write. */
const REVERT_MODE = 0o200;

/**
 * Makes a file of this thread: one of the plan or of a snapshot.
 * @param live for a snapshot: the node of its image
 * @param opens see `DiskOptions`
 */
export type MakeFile = (
  file: FilePlan,
  node: BlockNode | undefined,
  facts: FileFacts,
  more?: { live?: BlockNode; opens?: Int32Array },
) => VirtualFile;

export interface FileMaker {
  make: MakeFile;
  uid: number;
  gid: number;
  source: SnapshotSource;
  /** The live disk of an image reads differently from now on. */
  onReplaced(image: number): void;
}

interface PlannedFolder {
  plan: SnapshotsPlan;
  ino: number;
  slots: SnapshotSlots;
  folder: SnapshotFolder;
}

/** Methods that take an inode number answer undefined when it is none of theirs. */
export class SnapshotTree {
  /** First inode number that belongs to no file of the plan. */
  private readonly base: number;
  private readonly folders = new Map<number, PlannedFolder>();
  private readonly planned = new Map<SnapshotFolder, PlannedFolder>();
  private readonly views = new Map<number, SnapshotView>();

  constructor(
    plan: TreePlan,
    nodes: readonly (BlockNode | undefined)[],
    private readonly maker: FileMaker,
  ) {
    this.base = plan.files.length;
    const { lastSerial } = new TreeState(plan.state);
    const context = { source: maker.source, views: this.views, onReplaced: maker.onReplaced };
    plan.files.forEach((file, ino) => {
      if (file?.kind !== 'snapshots') return;
      const node = nodes[file.image];
      assert.ok(node !== undefined, `image ${file.image} has no node: plan and nodes belong together`);
      const slots = new SnapshotSlots(file.slots, lastSerial);
      const folder = new SnapshotFolder(file.image, node, slots, context);
      const planned = { plan: file, ino, slots, folder };
      this.folders.set(ino, planned);
      this.planned.set(folder, planned);
    });
  }

  /** Handles on the live disk of an image: one word, shared. Undefined for images that cannot be reverted. */
  liveOpens(image: number): Int32Array | undefined {
    return [...this.folders.values()].find(({ plan }) => plan.image === image)?.slots.liveOpens;
  }

  /** `snapshots` of an image. */
  folder(ino: number): SnapshotFolder | undefined {
    return this.folders.get(ino)?.folder;
  }

  inoOf(view: SnapshotView): number {
    return this.base + view.slot.serial * STRIDE + FOLDER;
  }

  isDirectory(ino: number): boolean {
    return this.folders.has(ino) || (this.placeOf(ino) === FOLDER && this.view(ino) !== undefined);
  }

  lookup(parent: number, name: string): number | undefined {
    const folder = this.folder(parent);
    if (folder !== undefined) return this.inoOf(folder.find(name));
    const view = this.viewFolder(parent);
    if (view === undefined) return undefined;
    const place = NAMES.indexOf(name, FOLDER + 1);
    if (place >= 0 && this.has(view, place)) return parent + place;
    throw notFound(name);
  }

  list(ino: number): DirectoryEntry[] | undefined {
    const folder = this.folder(ino);
    if (folder !== undefined) {
      return folder.list().map((view) => {
        return { name: view.name ?? '', ino: this.inoOf(view), kind: 'directory', position: view.slot.serial };
      });
    }
    const view = this.viewFolder(ino);
    if (view === undefined) return undefined;
    return NAMES.flatMap((name, place) => {
      const isListed = place !== FOLDER && place !== REVERT && this.has(view, place);
      return isListed ? [{ name, ino: ino + place, kind: 'file' as const }] : [];
    });
  }

  attributes(ino: number): FileAttributes | undefined {
    const planned = this.folders.get(ino);
    if (planned !== undefined) {
      const { plan, slots, folder } = planned;
      const nlink = 2 + folder.list().length;
      const { uid, gid } = this.maker;
      return directoryAttributes({ ino, mode: plan.mode, uid, gid, times: slots.times, clock: 0 }, nlink);
    }
    const view = this.view(ino);
    if (view === undefined) return undefined;
    if (this.placeOf(ino) === FOLDER) return directoryAttributes(this.factsOf(view, FOLDER), 2);
    const attributes = this.file(ino)?.attributes();
    return attributes === undefined ? undefined : { ...attributes, volatile: true };
  }

  /** A file of a snapshot. Every read of a snapshot comes through here. */
  file(ino: number): VirtualFile | undefined {
    const place = this.placeOf(ino);
    const view = place === FOLDER ? undefined : this.view(ino);
    if (view === undefined) return undefined;
    view.files ??= [];
    const made = view.files[place];
    if (made !== undefined) return made;
    if (!this.has(view, place)) return undefined;
    const file = this.make(view, place);
    view.files[place] = file;
    return file;
  }

  /** The snapshot keeps its clusters until the handle is released. */
  open(ino: number, flags: OpenFlags): OpenedFile | undefined {
    const view = this.view(ino);
    if (view === undefined || this.placeOf(ino) === FOLDER) return undefined;
    view.folder.pin(view);
    try {
      const opened = this.file(ino)?.open(flags);
      if (opened === undefined) view.folder.unpin(view);
      return opened;
    } catch (error) {
      view.folder.unpin(view);
      throw error;
    }
  }

  release(ino: number, handle: number): void {
    const view = this.view(ino);
    if (view === undefined || this.placeOf(ino) === FOLDER) return;
    this.file(ino)?.release(handle);
    view.folder.unpin(view);
  }

  /** Deletes what was kept for handles alone. When the mount is gone: a killed connection releases nothing. */
  disposeDoomed(): void {
    for (const { folder } of this.folders.values()) folder.disposeDoomed();
  }

  private placeOf(ino: number): number {
    return (ino - this.base) % STRIDE;
  }

  private view(ino: number): SnapshotView | undefined {
    const serial = Math.floor((ino - this.base) / STRIDE);
    if (!(serial > 0)) return undefined;
    const known = this.views.get(serial);
    if (known !== undefined) return known;
    for (const { folder } of this.folders.values()) folder.refresh();
    return this.views.get(serial);
  }

  /** The snapshot whose folder this is, and which still has a name. */
  private viewFolder(ino: number): SnapshotView | undefined {
    if (this.placeOf(ino) !== FOLDER) return undefined;
    const view = this.view(ino);
    view?.folder.refresh();
    if (view !== undefined && view.name === undefined) throw notFound(view.info.name);
    return view;
  }

  private has({ info, folder }: SnapshotView, place: number): boolean {
    if (place === VM_STATE) return info.vmStateSize > 0;
    if (place === REVERT) return !folder.node.readOnly;
    return place > FOLDER && place < NAMES.length;
  }

  private make(view: SnapshotView, place: number): VirtualFile {
    const { folder, info } = view;
    const facts = this.factsOf(view, place);
    if (place === REVERT) return new RevertFile(facts, (force) => folder.revert(view, force));
    const { source } = this.maker;
    if (place === VM_STATE) {
      return new VmStateFile(facts, info.vmStateSize, (offset, target, at, length) =>
        source.readVmState(folder.node, info.id, offset, target, at, length),
      );
    }
    const { mode } = facts;
    const node = { image: folder.image, layer: 0 };
    const planned = viewFiles({ node, mode, clock: 0, writable: false, map: 'chain-map', snapshot: info });
    const file = planned.find(({ name }) => name === NAMES[place])?.file;
    assert.ok(file !== undefined, 'every view has these files');
    return this.maker.make(file, this.nodeOf(view), facts, { live: folder.node });
  }

  /** Opened for this thread when its first file is made; its three files share it. */
  private nodeOf(view: SnapshotView): BlockNode {
    view.node ??= this.maker.source.open(view.folder.node, view.info.id);
    return view.node;
  }

  private factsOf({ folder, info, slot }: SnapshotView, place: number): FileFacts {
    const plan = this.planned.get(folder)?.plan;
    assert.ok(plan !== undefined, 'a folder is planned');
    const { uid, gid } = this.maker;
    const mode = place === FOLDER ? plan.viewMode : place === REVERT ? REVERT_MODE : plan.fileMode;
    const times = new Float64Array([info.dateSec * 1000 + info.dateNsec / 1e6]);
    return { ino: this.base + slot.serial * STRIDE + place, mode, uid, gid, times, clock: 0 };
  }
}

function directoryAttributes(facts: FileFacts, nlink: number): FileAttributes {
  const content = { nlink, size: 0, blocks: 0, blksize: DEFAULT_BLOCK_SIZE };
  return { ...attributesOf(facts, 'directory', content), volatile: true };
}

function notFound(name: string): FileError {
  if (Buffer.byteLength(name) > NAME_MAX_BYTES) return new FileError('ENAMETOOLONG', 'This name is too long');
  return new FileError('ENOENT', `There is no file "${name}" here`);
}
