/** Loading a shared library by path before something else asks for it by name. */
import type { IKoffiLib } from 'koffi';
import { koffi } from './koffi';

/** What is loaded stays loaded. */
const loaded: IKoffiLib[] = [];

/** Afterwards the dynamic linker takes this library for its SONAME, wherever it lies. Throws when it cannot be loaded. */
export function loadSharedLibrary(path: string): void {
  loaded.push(koffi.load(path, { global: true }));
}
